// The mail server's queue as it changes: /ws/queue, drawn. Messages: robin/live.py.
"use strict";

(() => {
  const root = document.getElementById("queue");
  if (!root) return;
  const { element, shape, post, gettext, ngettext, number, written } = window.portal;
  const find = (id) => document.getElementById(id);
  const SHOWN = 50;
  const HOUR = 3_600_000;
  const SPANS = [10, 20, 30, 60]; // minutes
  const WAITS = [1, 2, 4, 8, 15]; // seconds between tries to connect
  const SILENCE = 30_000; // the server speaks at each poll, five seconds apart unless set otherwise
  const items = new Map();
  const rows = new Map();
  const history = JSON.parse(root.dataset.history);
  let seq = null;
  let tries = 0;
  let lastWord = 0;

  // -- The socket ---------------------------------------------------------------------------------
  async function connect() {
    const answer = await post(root.dataset.ticketUrl, root.dataset.csrf).catch(() => null);
    if (!answer) return again(gettext("The gateway cannot be reached."));
    if (answer.type === "opaqueredirect") return stop(gettext("You are signed out. Reload the page to sign in."));
    if (answer.status === 404 || answer.status === 403) return stop(gettext("Your role does not show the queue any more."));
    if (!answer.ok) return again(gettext("The gateway answered %(status)s.", { status: answer.status }));
    const { ticket } = await answer.json();
    const address = new URL("/ws/queue", location.href);
    address.protocol = location.protocol === "https:" ? "wss:" : "ws:";
    address.searchParams.set("ticket", ticket);
    if (seq !== null) address.searchParams.set("since", seq);
    const socket = new WebSocket(address);
    lastWord = Date.now();
    // A line that is dead does not say so.
    const watch = setInterval(() => { if (Date.now() - lastWord > SILENCE) socket.close(); }, 5000);
    socket.addEventListener("message", (event) => {
      lastWord = Date.now();
      tries = 0;
      hear(JSON.parse(event.data));
    });
    socket.addEventListener("close", (event) => {
      clearInterval(watch);
      if (event.code === 4403) stop(gettext("Your role does not show the queue any more."));
      else again(gettext("The connection ended."));
    });
  }

  function again(message) {
    const seconds = WAITS[Math.min(tries, WAITS.length - 1)];
    tries += 1;
    link(gettext("reconnecting"), "warn");
    if (tries > 1) trouble(`${message} ${gettext("Trying again every few seconds; what is shown may be old.")}`);
    setTimeout(connect, seconds * 1000);
  }

  function stop(message) {
    link(gettext("ended"), "bad");
    trouble(message);
  }

  function link(message, kind) {
    find("link").textContent = message;
    find("link").className = `badge ${kind}`;
  }

  function trouble(message) {
    find("trouble").textContent = message;
    find("trouble").hidden = !message;
  }

  // -- What it says -------------------------------------------------------------------------------
  function hear(message) {
    seq = message.seq;
    if (message.type === "status") {
      if (message.status === "up") live();
      else {
        link(message.status, "warn");
        trouble(`${message.message} ${gettext("What is shown may be old.")}`);
      }
      return;
    }
    if (message.type === "action") return showAction(message);
    live();
    if (message.type === "snapshot") {
      items.clear();
      for (const item of message.items) items.set(item.uid, item);
    } else if (message.type === "diff") {
      for (const uid of message.removed) items.delete(uid);
      for (const item of [...message.added, ...message.changed]) items.set(item.uid, item);
    }
    showTotals(message.totals, Date.parse(message.at));
    if (message.type === "heartbeat") return;
    showItems(message.type === "diff");
    // The table of destinations is the server's; of the first message it has what there is.
    if (message.type === "diff") document.body.dispatchEvent(new Event("queue-changed"));
  }

  // How far somebody's action on many items is.
  function showAction(message) {
    const link = find("acting").querySelector("a");
    link.href = root.dataset.actionUrl.replace(root.dataset.noId, message.id);
    link.textContent = gettext("%(action)s: %(sent)s of %(all)s", {
      action: message.action, sent: number(message.sent), all: number(message.requested),
    });
    find("acting").hidden = message.state !== "queued" && message.state !== "processing";
  }

  function live() {
    link(gettext("live"), "good");
    trouble("");
  }

  function showTotals(totals, at) {
    for (const figure of document.querySelectorAll("[data-total]")) {
      figure.textContent = number(totals[figure.dataset.total]);
    }
    find("changed").textContent = gettext("as of %(at)s", { at: written(at) });
    // The first snapshot may be older than the page's history: of when somebody watched last.
    history.push([at, totals.total]);
    history.sort(([one], [other]) => one - other);
    draw(at);
  }

  // -- The table: rows are kept, so that a selection in them is ------------------------------------
  function rowOf(item) {
    const row = element("tr");
    const state = element("td");
    const words = { READY: gettext("ready"), CLAIMED: gettext("in delivery") };
    state.append(element("span", words[item.state] || gettext("not known yet"), `badge ${item.state === "CLAIMED" ? "good" : ""}`));
    const since = element("time");
    since.dateTime = new Date(item.createTime).toISOString();
    since.title = `${since.dateTime.slice(0, 19).replace("T", " ")} UTC`;
    since.textContent = written(item.createTime);
    const at = element("td");
    at.append(since);
    const more = item.recipientsTotal > 1 ? ` ${ngettext("and %(n)s more", "and %(n)s more", item.recipientsTotal - 1)}` : "";
    const to = element("td");
    const link = element("a", item.mailbox || item.uid);
    link.href = root.dataset.itemUrl.replace("UID", item.uid);
    to.append(link, more);
    row.append(
      to, state,
      element("td", gettext("%(n)s of %(most)s", { n: item.retryCount, most: item.maxRetryCount }), "number"),
      element("td", item.protocol), at, element("td", item.uid.slice(0, 8), "mono"),
    );
    row.lastChild.title = item.uid;
    return row;
  }

  function showItems(isChange) {
    const wanted = [...items.values()].sort((a, b) => b.createTime - a.createTime).slice(0, SHOWN);
    const keep = new Set(wanted.map((item) => item.uid));
    for (const [uid, known] of rows) {
      if (!keep.has(uid)) {
        known.row.remove();
        rows.delete(uid);
      }
    }
    let before = null;
    for (const item of wanted) {
      const text = JSON.stringify(item);
      let known = rows.get(item.uid);
      if (!known || known.text !== text) {
        const row = rowOf(item);
        if (isChange) row.className = "fresh";
        if (known) known.row.replaceWith(row);
        known = { row, text };
        rows.set(item.uid, known);
      }
      const next = before ? before.nextSibling : find("items").firstChild;
      if (known.row !== next) find("items").insertBefore(known.row, next);
      before = known.row;
    }
    const hidden = items.size - wanted.length;
    find("more").textContent = hidden > 0 ? ngettext("The latest %(shown)s; %(n)s older one is not shown.", "The latest %(shown)s; %(n)s older ones are not shown.", hidden, { shown: SHOWN }) : "";
    find("none").hidden = items.size > 0;
    document.querySelector(".log").hidden = items.size === 0;
  }

  // -- The chart ----------------------------------------------------------------------------------
  const [HEIGHT, LEFT, TOP, BOTTOM] = [180, 48, 10, 22];

  function top(most) {
    const unit = 10 ** Math.floor(Math.log10(Math.max(most, 1)));
    return unit * [2, 4, 10, 20].find((n) => n * unit > most);
  }

  function draw(now) {
    while (history.length && history[0][0] < now - HOUR) history.shift();
    // A unit is a pixel: on a phone the words of the axes stay as large as others.
    const width = find("chart").clientWidth || 720;
    find("chart").setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    const most = top(Math.max(...history.map(([, total]) => total), 1));
    // As far back as is known, ten minutes at least.
    const span = SPANS.map((minutes) => minutes * 60_000).find((span) => history[0][0] >= now - span) || HOUR;
    const x = (at) => LEFT + ((width - LEFT) * (at - now + span)) / span;
    const y = (total) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - total / most);
    const parts = [];
    for (const level of [0, most / 2, most]) {
      parts.push(shape("line", { class: "gridline", x1: LEFT, x2: width, y1: y(level), y2: y(level) }));
      parts.push(shape("text", { class: "axis", x: 0, y: y(level) }, number(level)));
    }
    for (const part of [1, 0.5]) {
      const label = gettext("%(n)s min ago", { n: (span * part) / 60_000 });
      parts.push(shape("text", { class: "axis", x: x(now - span * part), y: HEIGHT - 6 }, label));
    }
    const points = history.map(([at, total]) => `${x(at).toFixed(1)},${y(total).toFixed(1)}`);
    // Steps: between two looks the number is what it was.
    const path = points.map((point, index) => (index ? `H${point.split(",")[0]}V${point.split(",")[1]}` : `M${point}`));
    const line = `${path.join("")}H${width}`;
    const first = points[0].split(",")[0];
    parts.push(shape("path", { class: "area", d: `${line}V${y(0)}H${first}Z` }));
    parts.push(shape("path", { class: "line series-1", d: line }));
    find("chart").replaceChildren(...parts);
    const last = history.at(-1)[1];
    find("chart").setAttribute("aria-label", gettext("Items in the queue over %(minutes)s minutes, now %(n)s", { minutes: span / 60_000, n: number(last) }));
  }

  connect();
})();
