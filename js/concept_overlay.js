// While the mixer or the Conductor runs: on its node the concepts' masks, which the Conductor refines, and their names, the
// mixer's in the order of its live view; on each concept's node its colour.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { addPanel, findNode, fit, onOutput, pictureUrl, showOutput } from "./panel.js";
import { text } from "./texts.js";

const MIXER = "PnPMixSampler"; // whose live view shows the branches beside the picture
const coloured = new WeakMap(); // by mixer: the Concept nodes that have a colour from it

function element(kind, words, colour) {
  const result = document.createElement(kind);
  result.textContent = words;
  if (colour) result.style.setProperty("--colour", colour);
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

function addColour(node) {
  const fill = addPanelFor(node, "colour", () => 14);
  onOutput(node, "colour", ({ name, colour }) => fill(...(colour ? [element("div", name, colour)] : [])));
}

function addOverlay(node) {
  const fill = addPanelFor(node, "overlay", (panel) => 170 + 36 * panel.querySelectorAll("p").length);
  onOutput(node, "overlay", ({ overlay: [{ picture, concepts, overlaps }] }) => {
    showColours(node, concepts);
    fill(...overlayOf(picture, concepts, overlaps, node.comfyClass === MIXER));
  });
}

function showColours(mixer, concepts) {
  const nodes = concepts.map(({ node }) => findNode(node));
  const others = (coloured.get(mixer) ?? []).filter((node) => !nodes.includes(node));
  for (const node of others) showOutput(node, { colour: null }); // bypassed, or no longer in the chain
  nodes.forEach((node, k) => showOutput(node, concepts[k]));
  coloured.set(mixer, nodes.filter(Boolean));
}

function overlayOf(picture, concepts, overlaps, live) {
  const overlay = document.createElement("img");
  overlay.src = pictureUrl(picture);
  overlay.alt = text("masksOverBackground");
  const branches = document.createElement("ol");
  const names = concepts.map(({ name, colour }) => element("li", name, colour));
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
  PnPMixConcept: addColour,
  PnPMixConductor: addOverlay,
  PnPMixConductedConcept: addColour,
};

app.registerExtension({
  name: "PnPMix.ConceptOverlay",
  nodeCreated: (node) => PANELS[node.comfyClass]?.(node),
});
