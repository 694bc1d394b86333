// One message of a conversation as it stands on the page, with what can be done to it.

import { action, copy, count, h, icon } from "./dom.js";
import { ending, lookInside, written as ofTokens } from "./answer.js";
import { withNote } from "./context.js";
import { forget, remembered } from "./memory.js";
import { Written } from "./tokens.js";

/** What stands where nothing was said yet. */
export const empty = ({ name, max_len: limit }) =>
  h("div", { class: "empty" },
    h("div", { class: "panes", "aria-hidden": "true" }, [1, 3, 4, 2, 0].map((step) => h("i", { "data-doubt": step }))),
    h("h1", {}, "Say something."),
    h("p", {}, `${name} reads ${limit.toLocaleString("en")} tokens at a time. When a conversation grows past that, this page says what was dropped.`),
    h("p", {}, "Every token it writes can be clicked: see how sure it was and what else it might have said, then continue from there."),
    remembered());

/** What the user said. */
export function said(chat, message, place) {
  const { facts, kept, notKept, text } = message;
  const waits = place === chat.conversation.messages.length - 1 && !chat.writing;
  return h("article", { class: "message user", "data-place": place, "aria-label": "You" },
    h("h2", { class: "who" }, "You"),
    h("div", { class: "body" },
      h("div", { class: "plain" }, text),
      facts?.length && h("p", { class: "quiet" }, `${count(facts.length, "remembered fact")} went along: ${facts.join(" · ")}`),
      kept && h("p", { class: "quiet" }, "Kept in memory. ", action("Undo", (event) => takeBack(chat, message, event.target.parentNode))),
      notKept && h("p", { class: "quiet" }, `Not kept in memory: ${notKept}.`),
      h("div", { class: "actions" },
        action("Copy", (event) => copy(text, event.target)),
        action("Edit", () => chat.edit(place)),
        waits && action("Answer", () => chat.answer(place)))));
}

async function takeBack(chat, message, line) {
  await forget(message.kept).catch(() => {}); // forgotten elsewhere already
  delete message.kept;
  chat.keep();
  line.remove();
}

/** What the model answered: the version that is shown. The node's `written` can be written on. */
export function answered(chat, message, place) {
  const version = message.versions[message.shown];
  const written = new Written({
    markdown: true,
    onpick: (token, other) => chat.branch(place, token, other),
    warning: () => chat.lost(place),
  });
  written.update(version.text, version.tokens);
  const node = h("article", { class: "message assistant", "data-place": place, "aria-label": version.model },
    h("h2", { class: "who" }, version.model),
    h("div", { class: "body" }, written.node, foot(chat, message, place)));
  node.written = written;
  return node;
}

function foot(chat, message, place) {
  const version = message.versions[message.shown];
  const last = place === chat.conversation.messages.length - 1;
  const unfinished = version.finish !== "stop" && version.tokens.length > 0;
  const note = ending(version.finish, version.tokens.length);
  return h("div", { class: "actions" },
    message.versions.length > 1 && versions(chat, message, place),
    action("Copy", (event) => copy(version.text, event.target)),
    version.tokens.length > 0 && version.asked && action("Look inside", () => look(chat, version, place)),
    last && action("Regenerate", () => chat.again(place)),
    last && unfinished && action("Go on", () => chat.goOn(place)),
    note && h("span", { class: "quiet" }, note));
}

function look(chat, version, place) {
  const { model, head, above, first } = version.asked;
  const messages = [...head, ...withNote(above, chat.plainly(place).slice(first))];
  return lookInside({ title: version.model, asked: { model, messages, ...ofTokens(version) } });
}

function versions(chat, message, place) {
  const { shown, versions } = message;
  const turn = (step) => () => {
    message.shown += step;
    chat.turned(place);
  };
  const button = (name, label, step, disabled) =>
    h("button", { class: "icon-button", "aria-label": label, disabled, onclick: turn(step) }, icon(name));
  return h("span", { class: "versions" },
    button("left", "The answer before", -1, shown === 0),
    `${shown + 1} of ${versions.length}`,
    button("right", "The next answer", 1, shown === versions.length - 1));
}
