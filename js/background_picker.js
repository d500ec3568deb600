// Background Picker: the candidates as pictures on the node; the chosen one is the value of its `index`.
import { app } from "../../scripts/app.js";
import { addPanel, onOutput, pictureUrl } from "./panel.js";
import { text } from "./texts.js";

const NODE = "PnPMixBackgroundPicker";
const KEYS = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 };
const GAP = 4; // pixels between pictures
const SMALLEST = 96; // width of a picture in pixels; where not all fit at that, they scroll

/** The number of columns with which `count` pictures of this width / height are largest, and their width. */
function grid(count, shape, width, height) {
  let best = { columns: 1, size: 0 };
  for (let columns = 1; columns <= count; columns++) {
    const rows = Math.ceil(count / columns);
    const size = Math.min((width + GAP) / columns - GAP, shape * ((height + GAP) / rows - GAP));
    if (size > best.size) best = { columns, size };
  }
  if (best.size >= SMALLEST) return { columns: best.columns, size: `${best.size}px` };
  return { columns: Math.max(1, Math.floor((width + GAP) / (SMALLEST + GAP))), size: "1fr" };
}

function addPicker(node) {
  const index = node.widgets.find((widget) => widget.name === "index");
  const panel = addPanel(node, "candidates", () => 150);
  node.setSize([node.size[0], node.computeSize()[1] + 120]); // a new one has room for four
  const list = document.createElement("div");
  list.setAttribute("role", "radiogroup");
  list.setAttribute("aria-label", text("candidates"));
  list.dataset.captureWheel = "true"; // the newer rendering leaves it the wheel while it has the focus
  list.textContent = text("queueToSeeCandidates");
  panel.append(list);
  let buttons = [];

  function arrange() {
    const { naturalWidth, naturalHeight } = buttons[0]?.firstChild ?? {};
    if (!naturalHeight) return;
    const { columns, size } = grid(buttons.length, naturalWidth / naturalHeight, panel.clientWidth, panel.clientHeight);
    list.style.gridTemplateColumns = `repeat(${columns}, minmax(0, ${size}))`;
    if (buttons.includes(document.activeElement)) bring(document.activeElement);
  }
  new ResizeObserver(arrange).observe(panel);

  function bring(button) {
    const { offsetTop, offsetHeight } = button;
    list.scrollTop = Math.min(offsetTop, Math.max(list.scrollTop, offsetTop + offsetHeight - list.clientHeight));
  }

  function focus(button) {
    button.focus({ preventScroll: true }); // which would move the canvas too
    bring(button);
  }

  function mark(chosen) {
    buttons.forEach((button, k) => {
      button.setAttribute("aria-checked", k === chosen);
      button.tabIndex = k === chosen || (k === 0 && !buttons[chosen]) ? 0 : -1;
    });
  }

  function choose(k) {
    app.canvas.emitBeforeChange(); // so that Ctrl+Z takes it back
    index.value = k;
    index.callback?.(k);
    node.setDirtyCanvas(true, true);
    app.canvas.emitAfterChange();
    focus(buttons[k]);
  }

  function show({ candidates, chosen }) {
    const focused = buttons.indexOf(document.activeElement);
    const isWired = node.inputs.some((input) => input.name === "index" && input.link != null);
    buttons = candidates.map((file, k) => {
      const button = document.createElement("button");
      button.type = "button";
      button.disabled = isWired; // then another node chooses
      button.setAttribute("role", "radio");
      button.setAttribute("aria-label", text("candidate", { k }));
      const picture = document.createElement("img");
      picture.src = pictureUrl(file);
      picture.alt = "";
      picture.draggable = false;
      picture.addEventListener("load", arrange); // until then its height is not known
      const number = document.createElement("span");
      number.textContent = k;
      button.append(picture, number);
      button.addEventListener("click", () => choose(k));
      return button;
    });
    const { scrollTop } = list;
    list.replaceChildren(...buttons);
    list.scrollTop = scrollTop;
    mark(isWired ? chosen[0] : index.value);
    if (buttons[focused]) focus(buttons[focused]);
  }

  list.addEventListener("keydown", (event) => {
    const k = buttons.indexOf(event.target) + (KEYS[event.key] ?? 0);
    if (!(event.key in KEYS) || !buttons[k]) return;
    event.preventDefault();
    event.stopPropagation(); // the editor moves nodes with these keys
    choose(k);
  });

  const { callback } = index;
  index.callback = function (value, ...rest) {
    mark(value);
    return callback?.call(this, value, ...rest);
  };
  onOutput(node, "candidates", show);
}

app.registerExtension({
  name: "PnPMix.BackgroundPicker",
  nodeCreated(node) {
    if (node.comfyClass === NODE) addPicker(node);
  },
});
