// The server as a page sees it: calls with the key of this tab; whatever goes wrong is a Problem.

const STORED = "adaptermux-key";
const LIMIT_MS = 120_000;
let key = stored();

export class Problem extends Error {
  constructor(status, title, detail, fields = []) {
    super(detail);
    Object.assign(this, { status, title, fields });
  }
}

export function hasKey() {
  return key !== null;
}

// Headers hold ASCII only; no key has anything else.
export function isKey(text) {
  return /^[!-~]+$/.test(text);
}

export function useKey(text) {
  key = text;
  try {
    if (text === null) sessionStorage.removeItem(STORED);
    else sessionStorage.setItem(STORED, text);
  } catch {
    // a browser without storage: the key is forgotten with the page
  }
}

export async function getJson(path) {
  return parsed(await call(path, {}));
}

export async function getText(path) {
  return call(path, {});
}

export async function postJson(path, body, signal) {
  return parsed(await call(path, { method: "POST", body: JSON.stringify(body), signal }));
}

// A page as the server has written it, whatever its status: what is wrong stands in it. Scripts in it never run.
export function getDocument(path) {
  const request = new XMLHttpRequest();
  return new Promise((resolve, reject) => {
    request.open("GET", path);
    request.responseType = "document";
    request.timeout = LIMIT_MS;
    if (key !== null) request.setRequestHeader("authorization", `Bearer ${key}`);
    request.onload = () => {
      if (request.responseXML?.getElementById("main")) resolve(request.responseXML);
      else reject(new Problem(request.status, "strange answer", "the answer is no page of adaptermux; something in between has answered"));
    };
    request.onerror = request.ontimeout = () => reject(silence());
    request.send();
  });
}

async function call(path, options) {
  const headers = {};
  if (key !== null) headers.authorization = `Bearer ${key}`;
  if (options.body) headers["content-type"] = "application/json";
  const signals = [AbortSignal.timeout(LIMIT_MS), ...(options.signal ? [options.signal] : [])];
  let response, text;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store", signal: AbortSignal.any(signals) });
    text = await response.text();
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw silence();
  }
  if (response.ok) return text;
  throw problemOf(response, text);
}

function silence() {
  return new Problem(0, "no answer", `${location.host} does not answer; it may have stopped, or the network is down`);
}

function problemOf(response, text) {
  try {
    const { title, detail, errors } = JSON.parse(text);
    const wait = response.headers.get("retry-after");
    if (title && detail) return new Problem(response.status, title, wait ? `${detail}; ask again in ${wait} s` : detail, errors);
  } catch {
    // below
  }
  return new Problem(response.status, "strange answer", "the answer is not adaptermux's; something in between has answered");
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    throw new Problem(0, "strange answer", "the answer is no JSON; something in between has answered");
  }
}

function stored() {
  try {
    return sessionStorage.getItem(STORED);
  } catch {
    return null;
  }
}
