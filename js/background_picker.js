// Background Picker: the candidates as pictures on the node; the chosen one is the value of its `index`.
import { app } from "../../scripts/app.js";
import { addPanel, onOutput, pictureUrl, text } from "./panel.js";

const NODE = "PnPMixBackgroundPicker";
const KEYS = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 };

function addPicker(node) {
  const index = node.widgets.find((widget) => widget.name === "index");
  const panel = addPanel(node, "candidates", () => 150);
  panel.setAttribute("role", "radiogroup");
  panel.setAttribute("aria-label", text("candidates"));
  panel.textContent = text("queueToSeeCandidates");
  let buttons = [];

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
    buttons[k].focus({ preventScroll: true });
  }

  function show({ candidates, chosen }) {
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
      const number = document.createElement("span");
      number.textContent = k;
      button.append(picture, number);
      button.addEventListener("click", () => choose(k));
      return button;
    });
    panel.replaceChildren(...buttons);
    mark(isWired ? chosen[0] : index.value);
  }

  panel.addEventListener("keydown", (event) => {
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
