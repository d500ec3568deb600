// What this pack adds to a node: an element of the page, because only those show in both of the editor's renderings.
import { api } from "../../scripts/api.js";

const style = document.createElement("link");
style.rel = "stylesheet";
style.href = new URL("panel.css", import.meta.url).href;
document.head.append(style);

/** An empty element at the end of the node, `height()` pixels high at least; nothing of it is saved. */
export function addPanel(node, name, height) {
  const element = document.createElement("div");
  element.className = `pnpmix-panel pnpmix-${name}`;
  const widget = node.addDOMWidget(name, "pnpmix", element, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: height,
  });
  widget.serialize = false; // in the workflow; the option is for what is queued
  return element;
}

/** Makes the node high enough for what its panel now asks for. */
export function fit(node) {
  const [width, height] = node.computeSize();
  node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)]);
  node.setDirtyCanvas(true, true);
}

/** Address of a file in one of the server's folders. */
export function pictureUrl({ filename, subfolder, type }) {
  return api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`);
}
