// What this pack adds to a node: an element of the page, because only those show in both of the editor's renderings.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

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
    hideInPanel: true, // no row of its own among the properties
    getMinHeight: height,
  });
  widget.serialize = false; // in the workflow; the option is for what is queued
  // as wide as the node, whatever width a properties panel that lists it all the same notes down
  Object.defineProperty(widget, "width", { get: () => undefined, set() {} });
  // nor among the inputs of a subgraph that holds the node: what is disabled is not listed there
  Object.defineProperty(widget, "computedDisabled", { get: () => app.canvas?.graph !== node.graph, set() {} });
  return element;
}

/** Makes the node high enough for what its panel now asks for. */
export function fit(node) {
  const [width, height] = node.computeSize();
  node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)]);
  node.setDirtyCanvas(true, true);
}

/** A link that opens beside the editor. */
export function link(address, words = address) {
  const result = document.createElement("a");
  Object.assign(result, { href: address, textContent: words, target: "_blank", rel: "noopener" });
  return result;
}

/** Address of a file in one of the server's folders. */
export function pictureUrl({ filename, subfolder, type }) {
  return api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`);
}

const shows = new WeakMap(); // by node: what shows an output
const shown = new WeakMap(); // by node: the output that it shows

/** Lets the node show what it returned, or what another returned for it. */
export function showOutput(node, output) {
  if (!shows.has(node)) return; // the graph has changed since it was queued
  shown.set(node, output);
  shows.get(node)(output);
}

/** `show(output)` for what the node returns under `key`, after a run and whenever the editor builds the node anew. */
export function onOutput(node, key, show) {
  shows.set(node, (output) => output && key in output && show(output));
  const { onExecuted, onRemoved } = node;
  node.onExecuted = function (output) {
    onExecuted?.call(this, output);
    showOutput(node, output);
  };
  node.onRemoved = function () {
    onRemoved?.call(this);
    const copy = shown.has(node) && copyInSubgraph(node);
    if (copy) showOutput(copy, shown.get(node));
  };
}

/** The copy that takes the place of a node which becomes part of a subgraph. */
const copyInSubgraph = ({ id, type }) => everywhere(id).find((node) => node.type === type && !shown.has(node));

const rootGraph = () => app.rootGraph ?? app.graph;

/** The nodes of the graph and of its subgraphs. */
export const allNodes = () => [rootGraph(), ...(rootGraph().subgraphs?.values() ?? [])].flatMap(({ nodes }) => nodes);

const everywhere = (id) => allNodes().filter((node) => String(node.id) === String(id));

/** The node of an id such as "7", or node 7 of a subgraph: by its node, "3:7", or by the subgraph's own id. */
export function findNode(id) {
  const [last, ...outer] = String(id).split(":").reverse();
  const into = (graph, key) => graph?.subgraphs?.get(key) ?? graph?.getNodeById(key)?.subgraph;
  // what the server has kept from an earlier run may name a node that has moved into a subgraph, or out of one, since
  return outer.reduceRight(into, rootGraph())?.getNodeById(last) ?? everywhere(last)[0];
}

function showAgain(outputs) {
  for (const [id, output] of Object.entries(outputs)) showOutput(findNode(id), output);
}

app.registerExtension({
  name: "PnPMix.Panel",
  // undo builds the graph anew, and what its nodes returned stays
  afterConfigureGraph: () => showAgain(app.nodeOutputs),
  // another tab's graph comes first, what its nodes returned after it
  onNodeOutputsUpdated: showAgain,
});
