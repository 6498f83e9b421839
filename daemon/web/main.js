// The dashboard: what upcall did, why, and what it cost; and the switches to change its mind.

import { ApiError, call, setToken, stream } from "./api.js";
import { scoreBar, stackedBars } from "./chart.js";
import { locale, outcomeText, reasonText, text, translatePage } from "./text.js";

const SHOWN_DECISIONS = 50;
const RETRY_MS = 2000;
const REFRESH_MS = 5000;

const by = (id) => document.getElementById(id);
const number = new Intl.NumberFormat(locale);
const percent = new Intl.NumberFormat(locale, { style: "percent", maximumFractionDigits: 0 });
const clock = new Intl.DateTimeFormat(locale, { timeStyle: "medium" });
const hour = new Intl.DateTimeFormat(locale, { hour: "2-digit", minute: "2-digit" });
const day = new Intl.DateTimeFormat(locale, { day: "numeric", month: "short" });

function money(value) {
  const digits = value && Math.abs(value) < 0.1 ? 4 : 2;
  return new Intl.NumberFormat(locale, { style: "currency", currency: "USD", minimumFractionDigits: digits }).format(value);
}

function seconds(milliseconds) {
  return milliseconds < 1000 ? `${Math.round(milliseconds)} ms` : `${number.format(Math.round(milliseconds / 100) / 10)} s`;
}

function element(name, properties = {}, ...children) {
  const node = Object.assign(document.createElement(name), properties);
  node.append(...children);
  return node;
}

let stats = null;
let period = "today";
let stopAsking = null;
let shareAsked = 0;

// What upcall did

function showSums() {
  const sum = stats[period];
  by("requests").textContent = number.format(sum.requests);
  by("share").textContent = sum.local_share === null ? "–" : percent.format(sum.local_share);
  by("saved").textContent = money(sum.saved_usd);
  by("spent").textContent = money(sum.cost_usd);
  const { first_ms_p50: first, tokens_per_second: speed } = sum.speed.local;
  by("first").textContent = first === null ? "–" : seconds(first);
  by("speed").textContent = speed === null ? "–" : `${number.format(Math.round(speed))} ${text.tokensPerSecond}`;
  showReasons(sum);
  showSeries(period === "today" ? hoursOfToday() : stats.days.filter(({ start }) => start >= sum.since));
}

function hoursOfToday() {
  const midnight = new Date().setHours(0, 0, 0, 0) / 1000;
  return stats.hours.filter(({ start }) => start + 3600 > midnight);
}

function showReasons(sum) {
  const reasons = Object.entries(sum.by_reason);
  by("reasons").replaceChildren(
    ...reasons.map(([code, count]) => {
      const bar = element("span");
      bar.style.width = percentWidth(count / sum.requests);
      const name = element("span", { textContent: reasonText(code, stats.reasons[code]) });
      return element("li", { className: "meter" }, name, element("span", { textContent: number.format(count) }),
        element("div", { className: "track" }, bar));
    }),
  );
}

function showSeries(series) {
  const daily = period !== "today";
  const bars = series.map(({ start, local, cloud, failed }) => {
    const at = new Date(start * 1000);
    const label = (daily ? day : hour).format(at);
    const title = `${label}: ${local} ${text.local}, ${cloud} ${text.cloud}, ${failed} ${text.failed}`;
    return { label, title, parts: { local, cloud, failed } };
  });
  const sum = (name) => series.reduce((total, slot) => total + slot[name], 0);
  const label = `${text.routesOverTime}: ${sum("local")} ${text.local}, ${sum("cloud")} ${text.cloud}, ${sum("failed")} ${text.failed}`;
  by("chart").replaceChildren(stackedBars(bars, label, by("chart").clientWidth));
}

new ResizeObserver(() => stats && showSums()).observe(by("chart"));

function showBudget(budget) {
  const limits = [
    [text.perDay, budget.spent_today_usd, budget.daily_usd],
    [text.perMonth, budget.spent_month_usd, budget.monthly_usd],
  ];
  const rows = limits.filter(([, , limit]) => limit !== null).map(([name, spent, limit]) => {
    const share = limit ? Math.min(spent / limit, 1) : 1;
    const bar = element("span");
    bar.style.width = percentWidth(share);
    return element("div", { className: "meter" },
      element("span", { textContent: name }),
      element("span", { textContent: `${money(spent)} ${text.of} ${money(limit)}` }),
      element("div", { className: share > 0.9 ? "track near" : "track" }, bar));
  });
  by("budget").replaceChildren(...(rows.length ? rows : [element("p", { className: "dim", textContent: text.noBudget })]));
}

function percentWidth(share) {
  return `${(100 * share).toFixed(1)}%`;
}

// Decisions

function decisionRow(decision) {
  const failed = decision.outcome !== "ok";
  const row = element("tr", { className: failed ? "failed" : decision.route });
  row.dataset.id = decision.id;
  const cell = (label, content, className = "") => {
    const node = element("td", { className }, content);
    node.dataset.label = label;
    row.append(node);
  };
  cell(text.time, clock.format(new Date(decision.time * 1000)));
  const route = failed ? `${text[decision.route]}, ${outcomeText(decision.outcome)}` : text[decision.route];
  cell(text.route, element("span", {}, element("span", { className: "dot" }), route));
  cell(text.reason, reasonText(decision.reason, decision.explanation), "reason");
  cell(text.score, decision.score === null ? "–" : scoreBar(decision.score, decision.threshold, decision.route,
    text.scoreOf(decision.score.toFixed(2), decision.threshold.toFixed(2))), "score");
  cell(text.model, decision.model);
  cell(text.tokens, number.format(decision.prompt_tokens + decision.completion_tokens), "number");
  cell(text.took, decision.total_ms === null ? "–" : seconds(decision.total_ms), "number");
  cell(text.cost, decision.cost_usd === null ? "–" : money(decision.cost_usd), "number");
  cell(text.verdict, decision.score === null ? "–" : verdictButtons(decision), "verdict");
  return row;
}

function verdictButtons(decision) {
  const button = (verdict, label) => {
    const node = element("button", { type: "button", className: "quiet", textContent: label });
    node.setAttribute("aria-pressed", String(decision.verdict === verdict));
    node.addEventListener("click", () => attempt(async () => {
      await call("POST", "/v1/feedback", { id: decision.id, verdict });
      for (const other of node.parentElement.children) other.setAttribute("aria-pressed", String(other === node));
    }));
    return node;
  };
  const group = element("span", {}, button("right", text.right), " ", button("wrong", text.wrong));
  group.setAttribute("role", "group");
  group.setAttribute("aria-label", text.verdict);
  return group;
}

function showDecisions(decisions) {
  by("decisions").replaceChildren(...decisions.map(decisionRow));
  by("none").hidden = decisions.length > 0;
}

function addDecision(decision) {
  const row = decisionRow(decision);
  row.classList.add("new");
  by("decisions").prepend(row);
  by("none").hidden = true;
  while (by("decisions").children.length > SHOWN_DECISIONS) by("decisions").lastElementChild.remove();
}

// What runs

function showHealth(health) {
  const well = health.status === "ok";
  by("health").textContent = well ? text.healthy : text.degraded;
  by("health").className = well ? "pill ok" : "pill bad";
  by("privacy").checked = health.privacy;
  by("privacy").disabled = false;
  const { local, cloud, router, kernel } = health;
  const memory = Object.values(health.memory_bytes).reduce((sum, bytes) => sum + bytes, 0);
  const joined = (...parts) => parts.filter(Boolean).join(", ");
  const cloudModel = ({ model, has_key, resting }) =>
    joined(model, has_key ? text.keyReady : text.keyMissing, resting ? text.resting : "");
  const facts = [
    [text.router, joined(router.name, router.detail)],
    [text.localModel, joined(local.model, local.state, local.detail)],
    [text.cloudModel, cloud.models.map(cloudModel).join("; ")],
    [text.queue, number.format(local.waiting)],
    [text.kernel, kernel.barrier],
    [text.memory, memory ? `${number.format(Math.round(memory / 2 ** 20))} MB` : ""],
  ];
  by("parts").replaceChildren(...facts.filter(([, value]) => value !== "").flatMap(([name, value]) => [
    element("dt", { textContent: name }), element("dd", { textContent: value }),
  ]));
}

// Switches

function notice(message) {
  by("notice").textContent = message;
  by("notice").hidden = !message;
}

async function attempt(work) {
  try {
    notice("");
    await work();
  } catch (error) {
    if (error instanceof ApiError && error.status === 401) return askForToken(sessionStorage.length > 0);
    notice(error.message);
  }
}

function askForToken(refused) {
  by("login").hidden = false;
  by("main").hidden = true;
  if (refused) by("login").querySelector("p").textContent = text.tokenWrong;
  by("token").focus();
}

by("login").addEventListener("submit", (event) => {
  event.preventDefault();
  const token = by("token").value.trim();
  if (/[^\x21-\x7e]/.test(token)) return askForToken(true); // no header can carry it
  setToken(token);
  location.reload();
});

by("privacy").addEventListener("change", (event) => attempt(async () => {
  const on = event.target.checked;
  event.target.checked = !on;
  const now = await call("PUT", "/upcall/privacy", { on });
  event.target.checked = now.on;
  await refresh();
  if (now.detail) notice(now.detail);
}));

by("period").addEventListener("click", (event) => {
  if (!event.target.value) return;
  period = event.target.value;
  for (const button of by("period").children) button.setAttribute("aria-pressed", String(button === event.target));
  if (stats) showSums();
});

async function showShare(wanted) {
  const asked = (shareAsked += 1);
  const routing = await call("GET", wanted === undefined ? "/upcall/routing" : `/upcall/routing?cloud_share=${wanted / 100}`);
  if (asked !== shareAsked) return; // a later question is on its way
  const fixed = routing.cloud_share === null;
  by("cloud-share").disabled = by("apply").disabled = fixed;
  if (wanted === undefined && !fixed) by("cloud-share").value = Math.round(100 * routing.cloud_share);
  by("cloud-share-value").textContent = percent.format(by("cloud-share").value / 100);
  const share = routing.expected_share === null ? "" : percent.format(routing.expected_share);
  by("expected").textContent = fixed ? text.fixedThreshold
    : !share ? text.noneScored
      : routing.own_scores ? text.expected(share, number.format(routing.own_scores)) : text.expectedShipped(share);
}

by("cloud-share").addEventListener("input", () => {
  by("applied").textContent = "";
  by("cloud-share-value").textContent = percent.format(by("cloud-share").value / 100);
});
by("cloud-share").addEventListener("change", () => attempt(() => showShare(Number(by("cloud-share").value))));
by("sharing").addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(async () => {
    await call("PUT", "/upcall/routing", { cloud_share: by("cloud-share").value / 100 });
    await showShare();
    by("applied").textContent = text.applied;
  });
});

// A prompt of one's own

by("try").addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(tryPrompt);
});
by("stop").addEventListener("click", () => stopAsking?.abort());

async function tryPrompt() {
  const answer = by("answer");
  answer.hidden = false;
  answer.textContent = "";
  answer.setAttribute("aria-busy", "true");
  by("decided").textContent = text.thinking;
  by("send").disabled = true;
  by("stop").hidden = false;
  stopAsking = new AbortController();
  const messages = [{ role: "user", content: by("prompt").value }];
  try {
    let last = null;
    for await (const { data } of stream("POST", "/v1/chat/completions",
      { model: by("route").value, messages, stream: true, metadata: { "x-upcall-explain": "1" } }, stopAsking.signal)) {
      if (data.error) throw new ApiError(500, data.error.message);
      last = data.x_upcall ?? last;
      if (last) by("decided").textContent = decided(last);
      for (const choice of data.choices) answer.append(choice.delta.content ?? "");
    }
  } catch (error) {
    by("decided").textContent = error.name === "AbortError" ? text.stopped : "";
    if (error.name !== "AbortError") throw error;
  } finally {
    answer.setAttribute("aria-busy", "false");
    by("send").disabled = false;
    by("stop").hidden = true;
  }
}

function decided({ route, model, reason, explanation, score, threshold }) {
  const numbers = score === null ? "" : ` (${text.scoreOf(score.toFixed(2), threshold.toFixed(2))})`;
  return `${text[route]} · ${model} · ${reasonText(reason, explanation)}${numbers}`;
}

// Keeping up

let told = ""; // what keeping up has put into the notice, and may take back

function tell(message) {
  if (message === told && by("notice").textContent === message) return;
  if (message || by("notice").textContent === told) notice(message);
  told = message;
}

/** Do what needs the ledger, which may be off; gives the daemon's word on why that cannot be done, or nothing. */
async function withLedger(work) {
  try {
    await work();
    return "";
  } catch (error) {
    if (!(error instanceof ApiError) || error.status === 401) throw error;
    return error.message;
  }
}

async function refresh() {
  showHealth(await call("GET", "/healthz"));
  tell(await withLedger(async () => {
    stats = await call("GET", "/upcall/stats");
    showSums();
    showBudget(stats.budget);
  }));
}

async function showLatest() {
  const { decisions } = await call("GET", `/upcall/decisions?limit=${SHOWN_DECISIONS}`);
  showDecisions(decisions.filter(({ route }) => route));
}

async function follow() {
  for (;;) {
    try {
      await withLedger(showLatest);
      await refresh();
      for await (const { event, data } of stream("GET", "/upcall/events")) {
        if (event === "status") showHealth(data);
        if (event !== "decision" || data.route === null) continue;
        addDecision(data);
        await refresh();
      }
    } catch (error) {
      if (error instanceof ApiError && error.status === 401) return askForToken(sessionStorage.length > 0);
      if (error instanceof ApiError) {
        tell(error.message);
      } else {
        by("health").textContent = text.unreachable;
        by("health").className = "pill bad";
        tell(text.lost);
      }
    }
    await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
  }
}

translatePage();
follow();
attempt(() => showShare());
setInterval(() => refresh().catch(() => {}), REFRESH_MS);
