// A conversation: every message that was ever said in it, and which way through them stands on the page.
//
// { id, title, named, updated, revision, system, chosen, messages: [Message] }. A message is
// { parent, chosen, role: "user", text, facts, note } or
// { parent, chosen, role: "assistant", text, tokens, finish, model, seed, asked, took }: `parent` is the place in
// the list of what it answers, `chosen` of what goes on from it, both null where there is nothing. To say something
// else in the same place adds a message beside the old one: nothing that was said is ever lost to an edit.

import { ending } from "./answer.js";
import { count } from "./dom.js";

export const fresh = () => ({
  id: crypto.getRandomValues(new Uint32Array(2)).join("-"), title: "", named: false, updated: 0, revision: 0,
  system: null, chosen: null, messages: [],
});

/** What stands on the page, oldest first. */
export function path(conversation) {
  const way = [];
  for (let at = conversation.chosen; at !== null; at = way.at(-1).chosen) way.push(conversation.messages[at]);
  return way;
}

/** All that was said in the place of a message, itself among them. */
export const ways = (conversation, { parent }) => conversation.messages.filter((message) => message.parent === parent);

/** Say something after `before` (null: at the beginning), and show that way. Gives what takes it back. */
export function say(conversation, before, message) {
  const { messages } = conversation;
  const from = before ?? conversation;
  const was = from.chosen;
  const place = messages.length;
  messages.push(Object.assign(message, { parent: before ? messages.indexOf(before) : null, chosen: null }));
  from.chosen = place;
  return () => {
    messages.length = place;
    from.chosen = was;
  };
}

/** Show the way `step` beside the one on which a message lies. */
export function turn(conversation, message, step) {
  const all = ways(conversation, message);
  const other = all[all.indexOf(message) + step];
  const from = message.parent === null ? conversation : conversation.messages[message.parent];
  from.chosen = conversation.messages.indexOf(other);
}

/**
 * Take into `own` what another tab kept of the same conversation, where own goes on from all of that; false where
 * both said something in the same place. An answer that was still being written is as long as the longer one.
 */
export function merge(own, kept) {
  const same = (one, other) =>
    one && one.role === other.role && one.parent === other.parent && (one.text.startsWith(other.text) || other.text.startsWith(one.text));
  if (!kept.messages.every((message, i) => same(own.messages[i], message))) return false;
  kept.messages.forEach((message, i) => {
    if (message.text.length >= own.messages[i].text.length) Object.assign(own.messages[i], message, { chosen: own.messages[i].chosen });
  });
  return true;
}

/** What is kept beside `kept`, since both went on from the same place: its name begins with what was said here alone. */
export function apart(own, kept) {
  const here = own.messages.filter((message, i) => message.text !== kept.messages[i]?.text);
  const { text } = here.find(({ role }) => role === "user") ?? here[0] ?? own.messages[0];
  return `${oneLine(text).slice(0, 40)} (another tab’s way on from “${titled(own)}”)`;
}

const oneLine = (text) => text.replace(/\s+/g, " ").trim();

/** What it is called: as somebody named it, else how it begins. */
export function titled(conversation) {
  if (conversation.named) return conversation.title;
  const said = path(conversation).find((message) => message.role === "user");
  return oneLine(said ? said.text : "New conversation").slice(0, 60);
}

// Files

const KIND = "transom conversations";

/** Conversations as a file that can be read in again. */
export const asJson = (conversations) => JSON.stringify({ kind: KIND, version: 1, conversations }, null, 1);

/** What stands on the page as a file for people. */
export function asMarkdown(conversation) {
  const { system, messages } = conversation;
  const shown = path(conversation);
  const parts = shown.map(({ role, text, model, finish, tokens }) => {
    const ended = role === "assistant" && ending(finish, tokens?.length ?? 0);
    return `## ${role === "user" ? "You" : model}\n\n${text}${ended ? `\n\n*${ended}*` : ""}`;
  });
  if (system?.trim()) parts.unshift(`## System text\n\n${system.trim()}`);
  const aside = messages.length - shown.length;
  if (aside > 0) parts.push(`*Not here: ${count(aside, "message")} on other ways, which the export as JSON holds.*`);
  return `# ${titled(conversation)}\n\n${parts.join("\n\n")}\n`;
}

/** The conversations of such a file, each under a new id. Throws one line where it is none. */
export function fromJson(text) {
  let file;
  try {
    file = JSON.parse(text);
  } catch {
    throw new Error("this file is not JSON; import what was exported as JSON here");
  }
  if (file?.kind !== KIND || !Array.isArray(file.conversations))
    throw new Error("this file holds no conversations of Transom; import what was exported as JSON here");
  return file.conversations.map((one, i) => {
    try {
      return { ...fresh(), ...checked(one) };
    } catch (error) {
      throw new Error(`conversation ${i + 1} of this file cannot be read: ${error.message}`);
    }
  });
}

/** Only what a conversation has, of the right types: a file is anybody's. */
function checked({ title, named, updated, system, chosen, messages }) {
  const must = (right, what) => {
    if (!right) throw new Error(what);
  };
  const place = (at) => at === null || (Number.isInteger(at) && at >= 0 && at < messages.length);
  must(Array.isArray(messages), "it has no list of messages");
  must(place(chosen), "its first message is not there");
  messages.forEach((message, i) => {
    const where = `message ${i + 1}`;
    must(["user", "assistant"].includes(message?.role) && typeof message.text === "string", `${where} has no role or text`);
    must(place(message.parent) && (message.parent === null || message.parent < i), `${where} answers nothing that stands before it`);
    must(place(message.chosen) && (message.chosen === null || message.chosen > i), `${where} is followed by nothing that stands behind it`);
  });
  return {
    title: String(title ?? ""), named: named === true, updated: Number(updated) || Date.now(),
    system: typeof system === "string" ? system : null, chosen, messages: messages.map(only),
  };
}

const isToken = (token) =>
  Number.isInteger(token?.id) && typeof token.text === "string" && Number.isFinite(token.p) && typeof token.written === "string" &&
  Array.isArray(token.top) && token.top.every((one) => Number.isInteger(one?.id) && typeof one.text === "string" && Number.isFinite(one.p));

/** What an answer was an answer to, where a file has all of it. */
function toldOf(asked) {
  const { model, head, above, first } = asked ?? {};
  const right = [model, above].every((one) => typeof one === "string") && Number.isInteger(first) && first >= 0 &&
    Array.isArray(head) && head.every((one) => one?.role === "system" && typeof one.content === "string");
  return right && { model, head: head.map(({ role, content }) => ({ role, content })), above, first };
}

function only({ parent, chosen, role, text, facts, note, tokens, finish, model, seed, asked, took }) {
  if (role === "user")
    return { parent, chosen, role, text, ...(Array.isArray(facts) && { facts: facts.map((fact) => String(fact?.text ?? fact)) }), ...(typeof note === "string" && { note }) };
  const whole = Array.isArray(tokens) && tokens.every(isToken);
  const told = toldOf(asked);
  return { parent, chosen, role, text, tokens: whole ? tokens : [], finish: finish ?? null, model: String(model ?? ""), seed: Number(seed) || 0,
    took: Number(took) || 0, ...(told && { asked: told }) };
}

/** What earlier versions of this page kept: a list in which an answer had versions, and all else one way. */
export function fromList({ id, title, updated, messages: list }) {
  const conversation = { ...fresh(), id, title, updated };
  let before = null;
  for (const { versions, shown, ...message } of list) {
    for (const version of versions ?? [message]) say(conversation, before, { ...version, role: message.role });
    const last = conversation.messages.length - (versions?.length ?? 1);
    (before ?? conversation).chosen = last + (versions ? shown : 0);
    before = conversation.messages[(before ?? conversation).chosen];
  }
  return conversation;
}
