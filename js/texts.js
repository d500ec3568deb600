// Words in the editor's language, from locales/<language>/.
import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const { en, ...others } = await api.getCustomNodesI18n();
const own = others[app.ui.settings.getSettingValue("Comfy.Locale")] ?? {};
const words = { ...en.pnpmix, ...own.pnpmix };

const fill = (words, values) => words.replace(/\{(\w+)\}/g, (_, key) => values[key]);

/** The text of this name, with its {places} filled in. */
export const text = (name, values = {}) => fill(words[name], values);

const fixed = (saying) => saying.replace(/\{\d\}/g, "").length;

// What nodes and templates say, with {0}, {1} for what differs; what fits most exactly first
const sayings = Object.entries(own.pnpmixSays ?? {})
  .sort(([a], [b]) => fixed(b) - fixed(a))
  .map(([english, ours]) => {
    const plain = english.replace(/[.*+?^$()|[\]\\]/g, "\\$&").replace(/\{(\d)\}/g, "(?<_$1>.+?)");
    const further = plain.endsWith(".") ? "(?: (?<rest>.+))?" : ""; // sentences
    return [new RegExp(`^${plain}${further}$`), ours.replace(/\{(\d)\}/g, "{_$1}")];
  });

function sentences(said) {
  for (const [pattern, ours] of sayings) {
    const match = said.match(pattern);
    if (!match) continue;
    const { rest, ...places } = match.groups ?? {};
    for (const key in places) places[key] = sentences(places[key]);
    return fill(ours, places) + (rest ? ` ${sentences(rest)}` : "");
  }
  return said;
}

/** The node's type, by what messages call it. */
const typeOf = (name) => Object.keys(en.nodeDefs).find((type) => en.nodeDefs[type].display_name === name);

function line(said) {
  const [, name, key, fault] = said.match(/^(.+?), input '(\w+)': (.+)$/) ?? [];
  if (!fault) return sentences(said);
  const { display_name, inputs } = own.nodeDefs[typeOf(name.replace(/ '.*/, ""))] ?? {};
  const node = display_name ? name.replace(/^[^']+(?= ')|^[^']+$/, display_name) : name;
  return text("inputOfNode", { node, input: inputs?.[key]?.name ?? key, fault: sentences(fault) });
}

/** The same in the editor's language, line by line; what is not known stays English. */
export const translated = (said) => (sayings.length > 0 ? said.split("\n").map(line).join("\n") : said);
