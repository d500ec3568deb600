// While the mixer or the Conductor runs: on its node the concepts' masks, which the Conductor refines, and their names, the
// mixer's in the order of its live view; on each concept's node its color.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { addPanel, findNode, fit, onOutput, pictureUrl, showOutput } from "./panel.js";
import { text } from "./texts.js";

const MIXER = "PnPMixSampler"; // whose live view shows the branches beside the picture
const colored = new WeakMap(); // by mixer: the Concept nodes that have a color from it

function element(kind, words, color) {
  const result = document.createElement(kind);
  result.textContent = words;
  if (color) result.style.setProperty("--color", color);
  return result;
}

/** Adds a panel that takes no room before there is something to see. */
function addPanelFor(node, name, height) {
  const panel = addPanel(node, name, () => (panel.hasChildNodes() ? height(panel) : 0));
  return (...children) => {
    panel.replaceChildren(...children);
    fit(node);
  };
}

function addColor(node) {
  const fill = addPanelFor(node, "color", () => 14);
  onOutput(node, "color", ({ name, color }) => fill(...(color ? [element("div", name, color)] : [])));
}

function addOverlay(node) {
  const fill = addPanelFor(node, "overlay", (panel) => 170 + 36 * panel.querySelectorAll("p").length);
  onOutput(node, "overlay", ({ overlay: [{ picture, concepts, overlaps }] }) => {
    showColors(node, concepts);
    fill(...overlayOf(picture, concepts, overlaps, node.comfyClass === MIXER));
  });
}

function showColors(mixer, concepts) {
  const nodes = concepts.map(({ node }) => findNode(node));
  const others = (colored.get(mixer) ?? []).filter((node) => !nodes.includes(node));
  for (const node of others) showOutput(node, { color: null }); // bypassed, or no longer in the chain
  nodes.forEach((node, k) => showOutput(node, concepts[k]));
  colored.set(mixer, nodes.filter(Boolean));
}

function overlayOf(picture, concepts, overlaps, live) {
  const overlay = document.createElement("img");
  overlay.src = pictureUrl(picture);
  overlay.alt = text("masksOverBackground");
  const branches = document.createElement("ol");
  const names = concepts.map(({ name, color }) => element("li", name, color));
  if (live) {
    branches.title = text("orderOfLiveView");
    names.unshift(element("li", text("picture")));
  }
  branches.append(...names);
  const warnings = overlaps.map(([j, k, share]) => {
    const percent = Math.max(1, Math.round(100 * share));
    return element("p", text("overlap", { first: concepts[j].name, second: concepts[k].name, percent }));
  });
  return [overlay, branches, ...warnings];
}

// before the sampler is done, which is when the editor gets what it returns
api.addEventListener("pnpmix.concepts", ({ detail: { node, overlay } }) =>
  showOutput(findNode(node), { overlay: [overlay] }),
);

const PANELS = {
  [MIXER]: addOverlay,
  PnPMixCustomSampler: addOverlay,
  PnPMixConcept: addColor,
  PnPMixConductor: addOverlay,
  PnPMixConductedConcept: addColor,
};

app.registerExtension({
  name: "PnPMix.ConceptOverlay",
  nodeCreated: (node) => PANELS[node.comfyClass]?.(node),
});
