// Moves the threshold over the counts of the page, and says what it would flag.
"use strict";

(() => {
  const slider = document.getElementById("threshold");
  const counts = JSON.parse(document.getElementById("counts").textContent);
  const from = (bins, at) => bins.slice(Math.round(at * 100)).reduce((sum, n) => sum + n, 0);
  const { gettext, number } = window.portal;

  function summary(at) {
    const n = (bins, least = at) => number(from(bins, least));
    const lines = [gettext("%(flagged)s of %(all)s flagged in 30 days, %(alarms)s of them reported as false alarms.", {
      flagged: n(counts.scores), all: n(counts.scores, 0), alarms: n(counts.false_alarms),
    })];
    const change = from(counts.scores, at) - from(counts.scores, counts.in_force);
    const facts = { n: number(Math.abs(change)), threshold: number(counts.in_force, 2) };
    if (change > 0) lines.push(gettext("That is %(n)s more than at %(threshold)s, which is in force.", facts));
    if (change < 0) lines.push(gettext("That is %(n)s fewer than at %(threshold)s, which is in force.", facts));
    if (from(counts.missed, 0)) {
      lines.push(gettext("%(n)s of %(all)s missed attacks would be flagged.", { n: n(counts.missed), all: n(counts.missed, 0) }));
    }
    if (counts.attacks) {
      lines.push(gettext("Of the uploaded texts: %(attacks)s of %(all_attacks)s attacks flagged, %(harmless)s of %(all_harmless)s harmless ones.", {
        attacks: n(counts.attacks), all_attacks: n(counts.attacks, 0), harmless: n(counts.harmless), all_harmless: n(counts.harmless, 0),
      }));
    }
    return lines;
  }

  slider.addEventListener("input", () => {
    const at = Number(slider.value);
    document.getElementById("chosen").textContent = number(at, 2);
    const use = document.getElementById("use");
    if (use) use.value = at.toFixed(2);
    for (const bar of document.querySelectorAll(".histogram rect")) {
      bar.classList.toggle("over", Math.floor(Number(bar.getAttribute("x"))) >= Math.round(at * 100));
    }
    const line = document.getElementById("line");
    line.setAttribute("x1", at * 100);
    line.setAttribute("x2", at * 100);
    document.getElementById("summary").replaceChildren(...summary(at).map((text) => window.portal.element("p", text)));
  });
})();
