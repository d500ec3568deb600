// While the mixer runs: on its node the concepts' masks over the background, with the names of the branches in the order
// of the live view; on each Concept node its colour.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { addPanel, findNode, fit, onOutput, pictureUrl, text } from "./panel.js";

// Name and height of each node's panel. It takes no room before there is something to see.
const PANELS = {
  PnPMixSampler: ["overlay", (panel) => 170 + 36 * panel.querySelectorAll("p").length],
  PnPMixConcept: ["colour", () => 14],
};
const panels = new WeakMap(); // by node

function element(kind, words, colour) {
  const result = document.createElement(kind);
  result.textContent = words;
  if (colour) result.style.setProperty("--colour", colour);
  return result;
}

function fill(node, ...children) {
  const panel = panels.get(node);
  if (!panel) return; // the graph has changed since it was queued
  panel.replaceChildren(...children);
  fit(node);
}

function show(mixer, { picture, concepts, overlaps }) {
  for (const { node, name, colour } of concepts) fill(findNode(node), element("div", name, colour));

  const overlay = document.createElement("img");
  overlay.src = pictureUrl(picture);
  overlay.alt = text("masksOverBackground");
  const branches = document.createElement("ol");
  branches.title = text("orderOfLiveView");
  branches.append(element("li", text("picture")), ...concepts.map(({ name, colour }) => element("li", name, colour)));
  const warnings = overlaps.map(([j, k, share]) => {
    const percent = Math.max(1, Math.round(100 * share));
    return element("p", text("overlap", { first: concepts[j].name, second: concepts[k].name, percent }));
  });
  fill(mixer, overlay, branches, ...warnings);
}

// before the mixer is done, which is when the editor gets what it returns
api.addEventListener("pnpmix.concepts", ({ detail: { node, overlay } }) => show(findNode(node), overlay));

app.registerExtension({
  name: "PnPMix.ConceptOverlay",
  nodeCreated(node) {
    if (!(node.comfyClass in PANELS)) return;
    const [name, height] = PANELS[node.comfyClass];
    const panel = addPanel(node, name, () => (panel.hasChildNodes() ? height(panel) : 0));
    panels.set(node, panel);
    onOutput(node, "overlay", ({ overlay }) => show(node, overlay[0]));
  },
});
