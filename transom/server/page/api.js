// The server, as this page sees it: JSON in and out, events as they come, every failure as one line.

const KEY = "transom.key"; // in sessionStorage: gone with the tab
const MEMORY = "transom.memory"; // the token that opens the memory where there are no keys; likewise

export class ApiError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

let askForKey = null;

/** How to get a key from the person: an async function from a message to a key, or null when they give up. */
export function onKeyWanted(ask) {
  askForKey = ask;
}

function stored(name) {
  try {
    return sessionStorage.getItem(name);
  } catch {
    return null;
  }
}

/** Take the token out of the address by which the page was opened, so that no copy of that carries it on. */
function takeToken() {
  const token = /^#memory=([\w-]+)$/.exec(location.hash)?.[1];
  if (!token) return false;
  sessionStorage.setItem(MEMORY, token);
  history.replaceState(null, "", location.pathname);
  return true;
}

takeToken();
addEventListener("hashchange", () => takeToken() && location.reload());

/** One request. Asks for a key as long as the server wants one; raises ApiError for everything else. */
async function send(path, { method = "GET", body, signal } = {}) {
  for (;;) {
    const headers = { accept: "application/json" };
    const key = stored(KEY);
    if (key) headers.authorization = `Bearer ${key}`;
    if (path.startsWith("/memory")) headers["x-transom-memory"] = stored(MEMORY) ?? "";
    if (body !== undefined) headers["content-type"] = "application/json";
    let response;
    try {
      response = await fetch(path, {
        method, headers, signal, credentials: "omit", cache: "no-store",
        body: body === undefined ? undefined : JSON.stringify(body),
      });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ApiError(`No answer from ${location.host}; is the server still running?`);
    }
    if (response.ok) return response;
    const message = await messageOf(response);
    if (response.status !== 401 || !askForKey) throw new ApiError(message, response.status);
    const given = await askForKey(key ? "That key was not accepted." : "This server asks for a key.");
    if (!given) throw new ApiError(message, 401);
    sessionStorage.setItem(KEY, given);
  }
}

const upper = (line) => line.slice(0, 1).toUpperCase() + line.slice(1);

async function messageOf(response) {
  let message = "";
  try {
    message = (await response.json()).error.message;
  } catch {
    /* not one of the server's own errors */
  }
  if (response.status === 429) {
    const seconds = Number(response.headers.get("retry-after"));
    return `The server is busy${seconds ? `; it should have room in ${seconds} s` : ""}. Nothing was lost: send it again.`;
  }
  return upper(message) || `The server answered ${response.status} ${response.statusText}`.trim();
}

export async function get(path) {
  return (await send(path)).json();
}

/** POST, PATCH or DELETE with a JSON body; null where the answer is empty. */
export async function call(method, path, body, signal) {
  const response = await send(path, { method, body, signal });
  const text = await response.text();
  return text ? JSON.parse(text) : null;
}

export const post = (path, body, signal) => call("POST", path, body, signal);

/** The events of a streamed answer, as objects; raises ApiError where it breaks off before [DONE]. */
export async function* events(path, body, signal) {
  const response = await send(path, { method: "POST", body, signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read().catch((error) => {
        if (error.name === "AbortError") throw error;
        throw new ApiError("The connection broke off. What came is kept; go on when the server is back.");
      });
      if (done) throw new ApiError("The answer broke off: the server ended the connection.");
      const frames = (rest + value).split(/\r?\n\r?\n/);
      rest = frames.pop();
      for (const frame of frames) {
        const data = frame
          .split(/\r?\n/)
          .filter((line) => line.startsWith("data:"))
          .map((line) => line.slice(5).trimStart())
          .join("\n");
        if (data === "[DONE]") return;
        if (!data) continue; // a comment that keeps the connection open
        const event = JSON.parse(data);
        if (event.error) throw new ApiError(upper(event.error.message), event.error.status);
        yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
