// While the mixer runs: on its node the concepts' masks over the background, with the names of the branches in the order
// of the live view; on each Concept node its colour.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { addPanel, fit, pictureUrl } from "./panel.js";

// Name and height of each node's panel. It takes no room before there is something to see.
const PANELS = {
  PnPMixSampler: ["overlay", (panel) => 170 + 36 * panel.querySelectorAll("p").length],
  PnPMixConcept: ["colour", () => 14],
};
const panels = new WeakMap(); // by node

/** The node of an id such as "7", or "3:7" for node 7 in the subgraph of node 3. */
function findNode(id) {
  const [last, ...outer] = String(id).split(":").reverse();
  const graph = outer.reverse().reduce((g, key) => g?.getNodeById(key)?.subgraph, app.rootGraph ?? app.graph);
  return graph?.getNodeById(last);
}

function element(kind, text, colour) {
  const result = document.createElement(kind);
  result.textContent = text;
  if (colour) result.style.setProperty("--colour", colour);
  return result;
}

function show(id, ...children) {
  const node = findNode(id);
  const panel = panels.get(node);
  if (!panel) return; // the graph has changed since it was queued
  panel.replaceChildren(...children);
  fit(node);
}

api.addEventListener("pnpmix.concepts", ({ detail: { node, picture, concepts, overlaps } }) => {
  for (const concept of concepts) show(concept.node, element("div", concept.name, concept.colour));

  const overlay = document.createElement("img");
  overlay.src = pictureUrl(picture);
  overlay.alt = "The masks over the background";
  const branches = document.createElement("ol");
  branches.title = "The live view shows the picture and the branch of each concept in this order.";
  branches.append(element("li", "picture"), ...concepts.map(({ name, colour }) => element("li", name, colour)));
  const warnings = overlaps.map(([j, k, share]) => {
    const percent = Math.max(1, Math.round(100 * share));
    return element("p", `${concepts[j].name} and ${concepts[k].name} overlap: ${percent} % of the smaller mask.`);
  });
  show(node, overlay, branches, ...warnings);
});

app.registerExtension({
  name: "PnPMix.ConceptOverlay",
  nodeCreated(node) {
    if (!(node.comfyClass in PANELS)) return;
    const [name, height] = PANELS[node.comfyClass];
    const panel = addPanel(node, name, () => (panel.hasChildNodes() ? height(panel) : 0));
    panels.set(node, panel);
  },
});
