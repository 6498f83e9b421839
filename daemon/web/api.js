// The daemon's HTTP interface, from its own page: same origin, with the token where there is one.

export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

const TOKEN = "upcall-token";

export function setToken(token) {
  sessionStorage.setItem(TOKEN, token);
}

async function send(method, path, body, signal) {
  // The control header keeps pages of other origins out: they cannot send it without being allowed to first.
  const headers = { "x-upcall-control": "1" };
  const token = sessionStorage.getItem(TOKEN);
  if (token) headers.Authorization = `Bearer ${token}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const options = { method, headers, signal, cache: "no-store", body: body && JSON.stringify(body) };
  const response = await fetch(path, options);
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({}));
  throw new ApiError(response.status, problem.error?.message ?? response.statusText);
}

export async function call(method, path, body) {
  return (await send(method, path, body)).json();
}

/** Yields `{event, data}` of a stream of server-sent events; `EventSource` could not send the token. */
export async function* stream(method, path, body, signal) {
  const response = await send(method, path, body, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const fields = { event: "message", data: "" };
      for (const line of block.split("\n")) {
        const [, name, content] = line.match(/^(event|data): ?(.*)$/) ?? [];
        if (name === "event") fields.event = content;
        if (name === "data") fields.data += content;
      }
      if (fields.data && fields.data !== "[DONE]") yield { event: fields.event, data: JSON.parse(fields.data) };
    }
  }
}
