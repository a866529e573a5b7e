// Calls /v1/detect with a session key and draws what it says. Offsets are code points.
"use strict";

(() => {
  const root = document.getElementById("playground");
  if (!root) return;
  const { element, shape, post, letScroll, gettext, ngettext, number } = window.portal;
  const find = (id) => document.getElementById(id);
  const text = find("text");
  let key = null;
  let language = "curl";
  let last = null;

  // -- The key: asked for when needed, kept in this page only ------------------------------------
  async function freshKey() {
    const chosen = find("like").selectedOptions[0];
    if (key && key.chosen === chosen && key.until > Date.now() + 5000) return key.text;
    const facts = { like: chosen.value, engine: chosen.dataset.engine, workspace: root.dataset.workspace };
    const answer = await post(root.dataset.keyUrl, root.dataset.csrf, facts);
    if (answer.type === "opaqueredirect") throw new Error(gettext("You are signed out. Reload the page to sign in."));
    if (answer.status === 429) throw new Error(gettext("Too many keys were made. Wait a minute, then try again."));
    if (!answer.ok) throw new Error(gettext("No key could be made (%(status)s). Reload the page, then try again.", { status: answer.status }));
    const body = await answer.json();
    key = { text: body.key, chosen, until: Date.parse(body.expires_at) };
    return key.text;
  }

  async function ask(again) {
    const answer = await fetch(root.dataset.detectUrl, {
      method: "POST",
      headers: { "X-API-Key": await freshKey(), "Content-Type": "application/json" },
      body: JSON.stringify({ text: text.value, config: { detailed_response: true } }),
    });
    if (answer.status === 401 && !again) {
      key = null; // it ended or was revoked meanwhile
      return ask(true);
    }
    return answer;
  }

  // -- The answer ---------------------------------------------------------------------------------
  function showVerdict(body) {
    const badge = find("decision");
    badge.textContent = body.decision;
    badge.className = `badge ${{ flag: "bad", review: "warn" }[body.decision] || "good"}`;
    find("confidence").textContent = number(body.confidence, 2);
    const against = { threshold: number(body.threshold) };
    find("against").textContent = [
      body.is_malicious || body.would_flag
        ? gettext("at or above the threshold of %(threshold)s", against)
        : gettext("below the threshold of %(threshold)s", against),
      body.status === "complete" ? "" : gettext("%(status)s, judged by the %(source)s", body),
      body.cached ? gettext("remembered") : "",
    ].filter(Boolean).join("; ");
    find("reason").textContent = body.reason || "";
    const { detector, views } = body.details;
    find("judged").textContent = gettext("Judged by: %(detector)s. The embedded detector, which finds the evidence, read the text as: %(views)s.", {
      detector: [body.engine, detector.name, detector.version].filter(Boolean).join(", "),
      views: views.join(", "),
    });
    find("raw").textContent = JSON.stringify(body, null, 2);
    last = body;
    find("what-if").value = body.threshold;
    showWhatIf();
    letScroll(root);
  }

  // The score stays what it is: only what it is held against is another.
  function showWhatIf() {
    const at = Number(find("what-if").value);
    const listed = last.policy && last.policy.matched;
    const facts = { threshold: number(at, 2) };
    let result = last.confidence >= at
      ? gettext("At %(threshold)s it would be flagged.", facts)
      : gettext("At %(threshold)s it would be allowed.", facts);
    if (listed === "allow") result = gettext("The text stands on the allow list: no threshold counts.");
    if (listed === "deny") result = gettext("The text stands on the deny list: no threshold counts.");
    find("what-if-result").textContent = result;
  }

  // -- What was tried: in this tab ------------------------------------------------------------------
  function past() {
    try {
      return JSON.parse(sessionStorage.getItem("tried") || "[]");
    } catch {
      return [];
    }
  }

  function remember(sent, body) {
    const others = past().filter((one) => one.text !== sent);
    const tried = [{ text: sent, decision: body.decision, score: body.confidence }, ...others].slice(0, 20);
    try {
      sessionStorage.setItem("tried", JSON.stringify(tried));
    } catch {
      return; // full, or not allowed: it is a convenience
    }
    showPast();
  }

  function showPast() {
    const tried = past();
    find("past").hidden = !tried.length;
    find("past-list").replaceChildren(...tried.map((one) => {
      const button = element("button", `${number(one.score, 2)} ${one.decision}: ${one.text.slice(0, 60)}`, "button small quiet");
      button.type = "button";
      button.dataset.example = one.text;
      return button;
    }));
  }

  // -- A file of texts, as one batch ----------------------------------------------------------------
  let items = [];

  function textOf(line) {
    try {
      const row = JSON.parse(line);
      if (row && typeof row.text === "string") return row.text;
    } catch { /* a plain line */ }
    return line;
  }

  async function readFile() {
    const file = find("file").files[0];
    const lines = file ? (await file.text()).split(/\r?\n/).filter((line) => line.trim()) : [];
    const most = Number(root.dataset.itemsMax);
    items = lines.slice(0, most).map((line, index) => ({ id: String(index + 1), text: textOf(line) }));
    const left = { left: number(lines.length - most) };
    let said = file ? gettext("There is no text in this file.") : "";
    if (items.length && lines.length > most) {
      said = ngettext("%(n)s text; the other %(left)s are left out. Each counts one of the day.", "%(n)s texts; the other %(left)s are left out. Each counts one of the day.", items.length, left);
    } else if (items.length) {
      said = ngettext("%(n)s text. Each counts one of the day.", "%(n)s texts. Each counts one of the day.", items.length);
    }
    find("file-summary").textContent = said;
    find("send-file").disabled = !items.length;
  }

  async function sendFile() {
    find("send-file").disabled = true;
    try {
      const answer = await fetch(root.dataset.batchUrl, {
        method: "POST",
        headers: { "X-API-Key": await freshKey(), "Content-Type": "application/json", Prefer: "respond-async" },
        body: JSON.stringify({ requests: items }),
      });
      const body = await answer.json();
      if (!answer.ok) throw new Error(body.detail || body.title || gettext("The gateway answered %(status)s.", { status: answer.status }));
      location.assign(`${root.dataset.jobsUrl}/${body.batch_id}`);
    } catch (error) {
      find("file-summary").textContent = error instanceof TypeError
        ? gettext("The gateway cannot be reached. Look at your connection, then try again.")
        : error.message;
      find("send-file").disabled = false;
    }
  }

  function showScores(categories) {
    const rows = categories.map((category) => {
      const row = element("div", "", "bar-row");
      const label = element("span", "", "row between");
      label.append(element("span", category.type.replaceAll("_", " ")), element("span", number(category.score, 2), "number"));
      const meter = document.createElement("meter");
      // Low is good: from the threshold on browsers draw it as bad.
      Object.assign(meter, { min: 0, max: 1, low: category.threshold, high: category.threshold, optimum: 0, value: category.score });
      meter.setAttribute("aria-label", `${category.type}: ${number(category.score, 2)}`);
      row.append(label, meter);
      return row;
    });
    find("scores").replaceChildren(...(rows.length ? rows : [element("p", gettext("No category has a score."), "soft")]));
  }

  const named = (span) => `${span.category.replaceAll("_", " ")} (${span.rule_id}, ${span.view})`;

  // Spans may overlap: each stretch between two borders is marked by all spans that cover it.
  function showEvidence(sent, spans) {
    const letters = Array.from(sent);
    const inside = spans.map((span) => ({ ...span, end: Math.min(span.end, letters.length) }));
    const borders = [...new Set([0, letters.length, ...inside.flatMap((span) => [span.start, span.end])])]
      .filter((at) => at <= letters.length).sort((a, b) => a - b);
    const parts = borders.slice(1).map((end, index) => {
      const start = borders[index];
      const over = inside.filter((span) => span.start <= start && span.end >= end);
      const part = letters.slice(start, end).join("");
      if (!over.length) return document.createTextNode(part);
      const mark = element("mark", part);
      mark.title = over.map(named).join(", ");
      return mark;
    });
    find("evidence").replaceChildren(...parts);
    // In words as well: a mark that has to be hovered says nothing to a finger or a keyboard.
    const said = spans.map((span) => `${letters.slice(span.start, span.end).join("").slice(0, 80)}: ${named(span)}`);
    find("rules").replaceChildren(...[...new Set(said)].map((line) => element("li", line)));
    if (!said.length) find("rules").append(element("li", gettext("No rule of the embedded detector found a place to mark.")));
  }

  // Server-Timing: gateway;dur=0.61, limiter;dur=0.20, upstream;dur=12.4 (milliseconds)
  function showTiming(header) {
    const parts = [...(header || "").matchAll(/(\w+);dur=([\d.]+)/g)].map(([, name, ms]) => ({ name, ms: Number(ms) }));
    const whole = parts.reduce((sum, part) => sum + part.ms, 0) || 1;
    const svg = find("split");
    svg.replaceChildren();
    find("split-summary").replaceChildren();
    let x = 0;
    parts.forEach((part, index) => {
      const width = (100 * part.ms) / whole;
      const colour = `series-${[1, 2, 4][index] ?? 3}`; // 3 is the colour of errors
      const bar = shape("rect", { class: colour, x, y: 0, width, height: 6 });
      const title = shape("title", {});
      title.textContent = `${part.name} ${number(part.ms, 2)} ms`;
      bar.append(title);
      svg.append(bar);
      x += width;
      const legend = element("span", "", "key");
      const swatch = shape("svg", { viewBox: "0 0 10 10", "aria-hidden": "true" });
      swatch.append(shape("rect", { class: colour, width: 10, height: 10, rx: 2 }));
      legend.append(swatch, element("span", `${part.name} ${number(part.ms, 2)} ms`, "number"));
      find("split-summary").append(legend);
    });
    svg.setAttribute("aria-label", parts.map((part) => `${part.name} ${number(part.ms, 2)} ms`).join(", "));
  }

  function showOnly(id) {
    for (const name of ["nothing", "problem", "answer"]) find(name).hidden = name !== id;
  }

  async function send() {
    const sent = text.value;
    find("send").disabled = true;
    try {
      const answer = await ask(false);
      const body = await answer.json();
      if (!answer.ok) throw new Error(body.detail || body.title || gettext("The gateway answered %(status)s.", { status: answer.status }));
      showVerdict(body);
      remember(sent, body);
      showScores(body.details.categories);
      showEvidence(sent, body.details.evidence);
      showTiming(answer.headers.get("Server-Timing"));
      const link = find("request-link");
      link.textContent = body.request_id;
      link.href = `${link.dataset.url}/${body.request_id}`;
      showOnly("answer");
    } catch (error) {
      find("problem").textContent = error instanceof TypeError
        ? gettext("The gateway cannot be reached. Look at your connection, then try again.")
        : error.message;
      showOnly("problem");
    } finally {
      find("send").disabled = false;
    }
  }

  // -- Snippets: what is in the box, quoted for each language ---------------------------------------
  const snippets = {
    curl: (url, body) => `curl -s ${url} \\
  -H "X-API-Key: $GATEWAY_KEY" \\
  -H 'Content-Type: application/json' \\
  -d '${body.replaceAll("'", "'\\''")}'`,
    // A JSON string is a string of Python and of JavaScript as it stands.
    python: (url, body, quoted) => `import json, os, urllib.request

request = urllib.request.Request(
    "${url}",
    data=json.dumps({"text": ${quoted}}).encode(),
    headers={"X-API-Key": os.environ["GATEWAY_KEY"], "Content-Type": "application/json"},
)
with urllib.request.urlopen(request, timeout=30) as answer:
    print(json.load(answer)["decision"])`,
    javascript: (url, body, quoted) => `// Save as ask.mjs, run with: node ask.mjs
const answer = await fetch("${url}", {
  method: "POST",
  headers: { "X-API-Key": process.env.GATEWAY_KEY, "Content-Type": "application/json" },
  body: JSON.stringify({ text: ${quoted} }),
});
console.log((await answer.json()).decision);`,
  };

  function showSnippet() {
    const url = root.dataset.baseUrl + root.dataset.detectUrl;
    // Python has no \ud83d\ude00 pairs, and JSON.stringify writes none for whole characters.
    find("snippet").textContent = snippets[language](url, JSON.stringify({ text: text.value }), JSON.stringify(text.value));
  }

  find("try").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  text.addEventListener("input", showSnippet);
  find("what-if").addEventListener("input", showWhatIf);
  find("file").addEventListener("change", readFile);
  find("send-file").addEventListener("click", sendFile);
  text.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) find("try").requestSubmit();
  });
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-example], [data-language]");
    if (!button) return;
    if (button.dataset.example) {
      text.value = button.dataset.example;
      text.focus();
    } else {
      language = button.dataset.language;
      for (const other of document.querySelectorAll("[data-language]")) other.removeAttribute("aria-current");
      button.setAttribute("aria-current", "true");
    }
    showSnippet();
  });
  showSnippet();
  showPast();
})();
