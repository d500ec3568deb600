import packages  # noqa: F401 the pack's libraries, for every test


def pytest_collection_modifyitems(items):
    for item in items:
        marks = {mark.name for mark in item.iter_markers()}
        assert not {"oldest", "newest"} <= marks, f"{item.nodeid} would run with no ComfyUI"


def pytest_terminal_summary(terminalreporter):
    from comfy_host import COMFYUI

    if COMFYUI is None:
        terminalreporter.section("NO COMFYUI WAS FOUND", red=True)
        terminalreporter.line("The tests that need it, which are the ones that matter, were SKIPPED.")
        terminalreporter.line("Set COMFYUI_DIR, or start ComfyUI once with python3 run.py, and run them again.")
