"""ComfyUI's editor in a browser, as a person uses it."""

import importlib.metadata
import re

from playwright.sync_api import Locator, Page

from server_process import Server

# Editors before 1.33 had the newer rendering as an experiment, which showed no elements of extensions, and no panel of
# properties.
FRONTEND = tuple(map(int, importlib.metadata.version("comfyui_frontend_package").split(".")))
IS_NEWER = FRONTEND >= (1, 33)
RENDERINGS = ["classic", "vue"] if IS_NEWER else ["classic"]

# What the editor reports of itself, without this pack too
ITS_OWN_ERRORS = re.compile(
    r"^Cannot read properties of undefined \(reading 'id'\)"
    r"|^Attempted to cleanup event listeners for graph that was never set up"
    r"|^ComfyApp graph accessed before initialization"
    r"|^Failed to load resource.* 404 .*/user\.css$"
    r"|^Failed to load resource.* 404 .*/docs/\w+/en\.md$"  # asked for before docs/<node>.md
)


class Editor:
    """`errors`: what the browser's console showed since it was cleared."""

    def __init__(self, page: Page, server: Server):
        self.page, self.server, self.errors = page, server, []
        page.set_default_timeout(30000)
        url = server.url
        page.on("console", lambda message: self.report(f"{message.text} {message.location['url']}", message.type))
        page.on("pageerror", lambda error: self.report(str(error), "error"))
        # nothing from other places: neither news nor how large a model is
        headers = {"content-length": "0", "access-control-allow-origin": "*", "access-control-expose-headers": "*"}
        page.route(
            lambda x: not x.startswith((url, "blob:", "data:")), lambda x: x.fulfill(status=200, headers=headers)
        )
        page.route("**/favicon.ico", lambda route: route.fulfill(status=204))

    def report(self, text: str, kind: str) -> None:
        if kind == "error" and not ITS_OWN_ERRORS.search(text):
            self.errors.append(text)

    def open(self) -> None:
        self.page.goto(self.server.url)
        loaded = "window.app?.graph && app.extensionManager?.workflow?.activeWorkflow"
        self.wait_until(f"!!({loaded} && LiteGraph.registered_node_types.PnPMixSampler)")

    def wait_until(self, condition: str, argument=None, seconds: float = 30) -> None:
        self.page.wait_for_function(condition, arg=argument, timeout=1000 * seconds)

    def load(self, workflow: dict, dismiss: bool = True) -> None:
        self.page.evaluate("workflow => app.loadGraphData(workflow)", workflow)
        if dismiss:
            self.close_dialogs()

    def complaint(self, *words: str) -> str:
        """What the editor shows of an error, with its details, in lower case, once one of `words` is there.

        Not what the rest of the page says: the notes in the graphs name the files too.
        """
        message = self.page.locator("[role=dialog]:visible, [data-testid=error-overlay]").last
        message.filter(has_text=re.compile(r"\w")).wait_for(timeout=60000)
        said, shown = message.inner_text().lower(), message
        details = self.page.get_by_test_id("error-overlay-see-errors")
        if details.is_visible():
            details.click()  # the message makes way for them
            shown = self.page.get_by_test_id("properties-panel")
        if not any(word in said for word in words):
            shown.filter(has_text=re.compile("|".join(map(re.escape, words)), re.IGNORECASE)).wait_for()
        text = said + shown.inner_text().lower()
        self.close_dialogs()
        return text

    def open_template(self, name: str) -> None:
        """From the template browser, where the pack has a shelf of its own, with a picture for each template."""
        self.command("Comfy.BrowseTemplates")
        dialog = self.page.get_by_role("dialog").last
        dialog.get_by_text("pnp-mix", exact=True).first.click()
        card = dialog.get_by_text(name, exact=True).first
        dialog.locator("img[src^=blob]").first.hover()
        for _ in range(50):  # the editor makes cards as they come into view
            if card.is_visible():
                break
            self.page.mouse.wheel(0, 300)
            self.page.wait_for_timeout(200)
        card.wait_for()
        dialog.locator("img[src^=blob]").first.wait_for()  # the editor fetches pictures as they come into view
        card.click()
        self.wait_until("app.graph.nodes.length > 0")
        self.close_dialogs()

    def command(self, name: str) -> None:
        self.page.evaluate("name => app.extensionManager.command.execute(name)", name)

    def to_another_tab_and_back(self) -> None:
        count = self.page.evaluate("app.graph.nodes.length")
        self.command("Comfy.NewBlankWorkflow")
        self.wait_until("app.graph.nodes.length === 0")
        self.command("Workspace.PreviousOpenedWorkflow")
        self.wait_until("count => app.graph.nodes.length === count", count)

    def select(self, node: int) -> None:
        self.page.evaluate("id => app.canvas.selectNode(app.graph.getNodeById(id))", node)

    def inputs(self, kind: str) -> list[str]:
        """Names of a node's inputs, widgets included."""
        info = self.server.get(f"/object_info/{kind}")[kind]["input"]
        return [name for group in ("required", "optional") for name in info.get(group, {})]

    def knows(self, kind: str) -> bool:
        return self.page.evaluate("kind => kind in LiteGraph.registered_node_types", kind)

    def slot(self, node: int, index: int, is_input: bool) -> tuple[float, float]:
        """Where the slot is in the window."""
        return self.page.evaluate(
            """([id, index, isInput]) => {
                const [x, y] = app.graph.getNodeById(id).getConnectionPos(isInput, index);
                return app.canvasPosToClientPos([x, y]);
            }""",
            [node, index, is_input],
        )

    def drag_link(self, origin: int, output: int, target: int, name: str) -> None:
        """With the mouse, from a slot to another."""
        index = self.page.evaluate("([id, name]) => app.graph.getNodeById(id).findInputSlot(name)", [target, name])
        self.page.mouse.move(*self.slot(origin, output, False))
        self.page.mouse.down()
        self.page.mouse.move(*self.slot(target, index, True), steps=5)
        self.page.mouse.up()

    def close_dialogs(self) -> None:
        for _ in range(3):
            if self.page.locator("[role=dialog]").count() == 0:
                return
            self.page.keyboard.press("Escape")
            self.page.wait_for_timeout(200)

    def graph(self) -> dict:
        """The graph as the editor saves it."""
        return self.page.evaluate("app.graph.serialize()")

    def add_from_search(self, title: str, x: int, y: int) -> None:
        """Double click on the canvas, words, and the node with this title among those that are found."""
        count = self.page.evaluate("app.graph.nodes.length")
        self.search(title, x, y).filter(has_text=title).first.click()
        self.wait_until("count => app.graph.nodes.length > count", count)
        # newer editors let the node follow the pointer until a click
        self.page.mouse.move(x + 20, y + 20, steps=3)
        self.page.wait_for_timeout(300)
        self.page.mouse.click(x + 20, y + 20)

    def search(self, words: str, x: int = 500, y: int = 300) -> Locator:
        """What the search box offers."""
        box = self.page.locator("input[role=combobox]:visible").first
        for _ in range(4):  # a canvas that has just loaded a graph may miss the first
            if box.is_visible():
                break
            self.page.mouse.dblclick(x, y)
            self.page.wait_for_timeout(400)
        box.fill(words)
        found = self.page.locator("[role=option]:visible")
        found.first.wait_for()
        self.page.wait_for_timeout(500)  # it searches a moment after the last key
        return found

    def add(self, kind: str, x: int = 350, y: int = 250, **widgets) -> int:
        """Puts a node on the canvas, without the mouse, and selects it; its id."""
        return self.page.evaluate(
            """([kind, position, widgets]) => {
                const node = LiteGraph.createNode(kind);
                node.pos = position;
                app.graph.add(node);
                for (const widget of node.widgets ?? []) widget.value = widgets[widget.name] ?? widget.value;
                app.canvas.selectNode(node);
                return Number(node.id);
            }""",
            [kind, [x, y], widgets],
        )

    def connect(self, origin: int, output: int, target: int, name: str) -> None:
        self.page.evaluate(
            "([a, output, b, name]) => app.graph.getNodeById(a).connect(output, app.graph.getNodeById(b), name)",
            [origin, output, target, name],
        )

    def resize(self, node: int, width: int, height: int) -> None:
        self.page.evaluate(
            """([id, size]) => {
                app.graph.getNodeById(id).setSize(size);
                app.canvas.setDirty(true, true);
            }""",
            [node, [width, height]],
        )

    def look_at(self, node: int) -> None:
        """Moves the canvas so that the node is in the middle of the window."""
        self.page.evaluate(
            """(id) => {
                const node = app.graph.getNodeById(id);
                app.canvas.ds.scale = 1;
                app.canvas.ds.offset = [500 - node.pos[0], 150 - node.pos[1]];
                app.canvas.setDirty(true, true);
            }""",
            node,
        )

    def render(self, how: str) -> None:
        """How the editor shows nodes: "classic", drawn on a canvas, or "vue", as elements of the page."""
        setting = "app.extensionManager.setting"
        if self.page.evaluate(f"{setting}.get('Comfy.VueNodes.Enabled')") != (how == "vue"):
            self.page.evaluate(f"on => {setting}.set('Comfy.VueNodes.Enabled', on)", how == "vue")

    def speak(self, language: str) -> None:
        """Changes the editor's language; extensions read it when the page loads."""
        self.page.evaluate("x => app.extensionManager.setting.set('Comfy.Locale', x)", language)
        self.open()

    def widget(self, node: int, name: str):
        """A widget's value."""
        return self.page.evaluate(
            "([id, name]) => app.graph.getNodeById(id).widgets.find((w) => w.name === name).value", [node, name]
        )

    def press_queue(self) -> None:
        button = self.page.get_by_test_id("queue-button")
        button.and_(self.page.locator("button")).or_(button.locator("button")).first.click()

    def show_properties(self, shown: bool) -> Locator:
        """The panel at the side, which the server remembers for later visits too."""
        panel = self.page.get_by_test_id("properties-panel")
        if panel.is_visible() != shown:
            self.page.get_by_role("button", name="Toggle properties panel").click()
        return panel

    def run(self, seconds: float = 120, keys: str = "") -> dict:
        """Queues the graph and waits until the editor has heard of its end; the server's account of it.

        With `keys` instead of the button where some are given.
        """
        self.page.evaluate(
            """() => {
                window.ended = null;
                for (const event of ["execution_success", "execution_error", "execution_interrupted"])
                    app.api.addEventListener(event, ({ detail }) => (window.ended = detail.prompt_id), { once: true });
            }"""
        )
        self.page.keyboard.press(keys) if keys else self.press_queue()
        self.wait_until("!!window.ended", seconds=seconds)
        prompt = self.page.evaluate("window.ended")
        # the server writes its history after it has told the editor
        return self.server.wait(lambda: (self.server.get(f"/history/{prompt}") or {}).get(prompt), 30)
