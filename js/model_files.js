// On a loader whose file is missing: the known files that fit, where they go, and links to them.
import { app } from "../../scripts/app.js";
import { addPanel, allNodes, fit, link } from "./panel.js";
import { text } from "./texts.js";

const checks = new WeakMap(); // by node

/** What goes into a folder, and links to it. */
function listed({ folder, files }) {
  const list = document.createElement("ul");
  for (const [name, address] of Object.entries(files)) {
    const item = document.createElement("li");
    item.append(link(address, name));
    list.append(item);
  }
  return [text("putFilesInto", { folder }), list];
}

function addFiles(node, combo, known) {
  const lines = 3 + Object.keys(known.files).length;
  const panel = addPanel(node, "files", () => (panel.hasChildNodes() ? 20 * lines : 0));

  function check() {
    const { values } = combo.options;
    const found = typeof values === "function" ? values(combo, node) : values;
    const isThere = found.length > 0 && (!combo.value || found.includes(combo.value));
    if (isThere !== panel.hasChildNodes()) return;
    panel.replaceChildren(...(isThere ? [] : listed(known)));
    fit(node);
  }

  checks.set(node, check);
  const { callback } = combo;
  combo.callback = function (...values) {
    check();
    return callback?.apply(this, values);
  };
  check();
}

app.registerExtension({
  name: "PnPMix.ModelFiles",
  nodeCreated(node) {
    const known = node.constructor.nodeData?.input?.required?.model_name?.[1]?.pnpmix_known;
    if (known) addFiles(node, node.widgets.find((widget) => widget.name === "model_name"), known);
  },
  loadedGraphNode: (node) => checks.get(node)?.(),
  refreshComboInNodes: () => setTimeout(() => allNodes().forEach((node) => checks.get(node)?.())), // with the new lists
});
