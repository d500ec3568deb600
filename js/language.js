// In other languages: what nodes tell of a run, and the notes and titles of templates.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { findNode } from "./panel.js";
import { translated } from "./texts.js";

const TOLD = "$$node-text-preview"; // the widget that the editor shows it in

function translateTold(node) {
  const widget = node?.widgets?.find(({ name }) => name === TOLD);
  if (widget) widget.value = translated(widget.value);
}

// once the editor has heard it too
api.addEventListener("progress_text", ({ detail }) => setTimeout(() => translateTold(findNode(detail.nodeId))));

function translateSlots({ inputs = [], outputs = [] }, isSubgraph) {
  for (const slot of [...inputs, ...outputs])
    if (slot.label || isSubgraph) slot.label = translated(slot.label ?? slot.name);
}

function translateTitles({ nodes, groups = [] }, subgraphs) {
  for (const titled of [...nodes, ...groups]) if (titled.title) titled.title = translated(titled.title);
  for (const node of nodes) {
    translateSlots(node, subgraphs.some(({ id }) => id === node.type));
    if (node.type === "MarkdownNote") node.widgets_values = node.widgets_values.map(translated);
  }
}

app.registerExtension({
  name: "PnPMix.Language",
  beforeConfigureGraph(graph) {
    const subgraphs = graph.definitions?.subgraphs ?? [];
    const levels = [graph, ...subgraphs];
    if (!levels.some(({ nodes }) => nodes.some(({ type }) => type?.startsWith("PnPMix")))) return;
    for (const level of levels) translateTitles(level, subgraphs);
    for (const subgraph of subgraphs) translateSlots(subgraph, true);
  },
});
