// What stopped a run, where nobody can miss it: the message of a node of this pack in full, and the way to the node that
// has to be mended.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { findNode, link } from "./panel.js";
import { text, translated } from "./texts.js";

const box = document.createElement("div");
box.className = "pnpmix-error";
box.setAttribute("role", "alert");
document.body.append(box);

function button(words, act) {
  const result = document.createElement("button");
  result.type = "button";
  result.textContent = words;
  result.addEventListener("click", act);
  return result;
}

/** The lines of the message, with what is an address in them as a link. */
function paragraphs(message) {
  return message.trim().split("\n").map((line) => {
    const result = document.createElement("p");
    for (const part of line.split(/(https:\/\/\S+)/)) result.append(part.startsWith("https://") ? link(part) : part);
    return result;
  });
}

const SETTLED = 300; // ms after which the editor has given a graph the view that it had before

function goTo(node) {
  const isElsewhere = app.canvas.graph !== node.graph; // in a subgraph, or out of one
  if (isElsewhere) app.canvas.setGraph(node.graph);
  app.canvas.selectNode(node);
  const look = () => app.canvas.animateToBounds(node.boundingRect, { duration: 1, zoom: 0.35 });
  if (isElsewhere) setTimeout(look, SETTLED);
  else look();
}

function show(message, node) {
  const title = document.createElement("strong");
  title.textContent = node?.getTitle() ?? "PnP-MIX";
  const buttons = document.createElement("div");
  if (node) buttons.append(button(text("goToNode"), () => goTo(node)));
  buttons.append(button(text("close"), hide));
  box.replaceChildren(title, ...paragraphs(translated(message)), buttons);
}

function hide() {
  box.replaceChildren();
}

// What nodes of this pack raise in nodes of others too: in samplers, for what is patched into a model
const BAD_INPUT = ".nodes.common.checks.BadInput";
const BLOCKED = /^Execution Blocked: (Demo Scene, input )/; // an output that is empty, in the node that it is wired to

let atFault; // the node to be mended, where another one stops for it; the server tells it first
api.addEventListener("pnpmix.fault", ({ detail }) => (atFault = detail.node));
api.addEventListener("execution_start", () => {
  atFault = undefined;
  hide();
});
api.addEventListener("execution_error", ({ detail }) => {
  const { node_type: type, exception_type: kind, exception_message: message } = detail;
  const isOurs = type?.startsWith("PnPMix") || kind?.endsWith(BAD_INPUT) || BLOCKED.test(message);
  if (isOurs) show(message.replace(BLOCKED, "$1"), findNode(atFault ?? detail.node_id));
});

app.registerExtension({ name: "PnPMix.RunError", afterConfigureGraph: hide }); // another graph
