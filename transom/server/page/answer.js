// One streamed piece of writing: events of the API in, text and tokens out. Chat and Complete share it.

import { events } from "./api.js";
import { settings } from "./store.js";
import { ALTERNATIVES, tokenOf, writer } from "./tokens.js";
import { longest } from "./context.js";

/** The fields of a request that the settings decide; `seed` is always said, so that a text can be made again. */
export function sampling(model) {
  const { temperature, topP, maxTokens, seed } = settings;
  return {
    model: model.id, stream: true, temperature, top_p: topP, max_tokens: longest(model, maxTokens),
    seed: seed ?? Math.floor(Math.random() * 2 ** 31),
  };
}

/**
 * Stream an answer into a version { text, tokens, finish, took, model, seed }, calling `changed` as it grows. What
 * the version holds already it begins with (`body.prefix_tokens`); the server sends what comes after.
 */
export async function stream(path, body, version, kind, changed, signal) {
  const write = writer();
  version.tokens.forEach(write);
  let first = null;
  for await (const event of events(path, body, signal)) {
    const choice = event.choices?.[0];
    if (!choice) continue;
    version.text += kind.text(choice);
    for (const entry of choice.logprobs?.content ?? []) {
      const token = tokenOf(entry);
      version.tokens.push({ ...token, written: write(token) });
    }
    if (choice.finish_reason) version.finish = choice.finish_reason;
    version.took = (performance.now() - (first ??= performance.now())) / 1000;
    changed();
  }
}

/** Open the panel that looks inside an answer; what it needs is loaded when it is first opened. */
export async function lookInside(answer) {
  const { open } = await import("/page/look.js");
  await open({ ...answer, from: document.activeElement });
}

/** What was written, as /look wants it: token ids, and how likely each was when it was written. */
export const written = ({ tokens }) => ({
  answer: tokens.map(({ id }) => id),
  logprobs: tokens.map(({ p }) => Math.max(Math.log(p), -9999)),
});

export const CHAT = {
  text: (choice) => choice.delta?.content ?? "",
  // Every token has its place in the text, so what was thought stays in it between its markers.
  fields: { logprobs: true, top_logprobs: ALTERNATIVES, separate_reasoning: false },
};
export const COMPLETION = {
  text: (choice) => choice.text ?? "",
  fields: { logprobs: ALTERNATIVES },
};

/** Why an answer ended, where that is not simply because it was over. */
export const ending = (finish, nTokens) =>
  ({ length: `Cut at ${nTokens.toLocaleString("en")} tokens.`, stopped: "Stopped.", error: "Broken off." })[finish ?? "stopped"] ?? "";

/** The version that begins like this one up to token `place`, and goes on with `other`. */
export function branch(version, place, other, starts) {
  const before = version.tokens.slice(0, place);
  const write = writer();
  before.forEach(write);
  const token = { ...other, top: version.tokens[place].top, written: write(other) };
  return {
    prefix: [...before.map(({ id }) => id), other.id],
    version: { text: version.text.slice(0, starts[place]) + token.written, tokens: [...before, token] },
  };
}
