// Filters the cases of a report and holds two candidates' answers against each other, in the page alone.
// Answers come from models: they only ever become text nodes.
"use strict";
(() => {
  const find = (id) => document.getElementById(id);
  const data = JSON.parse(find("case-data").textContent);
  const list = find("entries");
  const control = Object.fromEntries(
    ["words", "right", "left", "slice", "cause", "order", "failures", "differing", "keys"].map((name) => [name, find(`by-${name}`)]),
  );
  const entries = data.cases.map((known, number) => ({ known, number, node: find(`case-${number}`), words: null }));
  const entryOf = (node) => entries[Number(node.id.slice("case-".length))];
  const KINDS = ["same", "reworded", "missing", "added"];
  const MARKS = { same: "=", reworded: "~", missing: "−", added: "+" };
  const SPOKEN = { same: "the same", reworded: "in other words", missing: "only left", added: "only right" };
  const MOST_WORDS = 400; // of a text that is compared word by word; the time grows with their square
  const MOST_PRINTED = 10;

  const make = (tag, properties = {}, ...children) => {
    const node = Object.assign(document.createElement(tag), properties);
    node.append(...children.filter((child) => child !== null));
    return node;
  };
  let texts = null; // would be most of the page, so they lie there compressed
  const unpacked = (async () => {
    const packed = Uint8Array.from(atob(find("case-texts").textContent), (one) => one.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    texts = JSON.parse(await new Response(stream).text());
  })();
  const text = (number) => (number === undefined || number < 0 ? null : texts[number]);
  const right = () => Number(control.right.value);
  const left = () => Number(control.left.value);
  const failed = (answer) => Boolean(answer && (answer.cause || !answer.valid));
  const wanted = (known) => known.expected || known.agreed || null;

  // --- items side by side -----------------------------------------------------------------------

  // Each item of a candidate's answer with the slot of the reference's item that it belongs to. The changes of every
  // candidate name the reference's items in the same order, so any two candidates meet in the slots.
  const itemsOf = (known, candidate) => {
    const isReference = candidate === data.reference;
    const answer = isReference ? known.answers.find((one) => one && one.changes) : known.answers[candidate];
    if (!answer || !answer.changes) return null;
    let slot = 0;
    const items = [];
    for (const [path, kind, reference, own] of answer.changes) {
      const at = reference < 0 ? null : slot++;
      const said = isReference ? reference : KINDS[kind] === "same" ? reference : own;
      if (said >= 0) items.push({ path, slot: at, text: texts[said] });
    }
    return items;
  };

  const compared = (known, one, other) => {
    const ours = itemsOf(known, one);
    const theirs = itemsOf(known, other);
    if (!ours || !theirs) return null;
    const paths = [...new Set([...ours, ...theirs].map((item) => item.path))].sort((a, b) => a - b);
    const fields = [];
    for (const path of paths) {
      const rest = theirs.filter((item) => item.path === path);
      const rows = [];
      for (const item of ours.filter((each) => each.path === path)) {
        const place = rest.findIndex((each) =>
          item.slot === null || each.slot === null ? each.text === item.text : each.slot === item.slot,
        );
        const match = place < 0 ? null : rest.splice(place, 1)[0];
        const kind = match === null ? "missing" : match.text === item.text ? "same" : "reworded";
        rows.push({ kind, left: item.text, right: match && match.text });
      }
      rest.forEach((item) => rows.push({ kind: "added", left: null, right: item.text }));
      fields.push({ path: data.paths[path], rows });
    }
    return fields;
  };

  const tokens = (said) => said.match(/[\p{L}\p{N}_]+|\s+|[^\p{L}\p{N}_\s]/gu) || [];

  // The words of both texts, each with whether the other text lacks it (longest common subsequence).
  const wordChanges = (before, after) => {
    const a = tokens(before);
    const b = tokens(after);
    if (a.length > MOST_WORDS || b.length > MOST_WORDS) return [[[before, false]], [[after, false]]];
    const width = b.length + 1;
    const lengths = new Uint16Array((a.length + 1) * width);
    for (let i = a.length - 1; i >= 0; i--) {
      for (let j = b.length - 1; j >= 0; j--) {
        const place = i * width + j;
        lengths[place] =
          a[i] === b[j] ? lengths[place + width + 1] + 1 : Math.max(lengths[place + width], lengths[place + 1]);
      }
    }
    const first = [];
    const second = [];
    let i = 0;
    let j = 0;
    while (i < a.length || j < b.length) {
      if (i < a.length && j < b.length && a[i] === b[j]) {
        first.push([a[i++], false]);
        second.push([b[j++], false]);
      } else if (j >= b.length || (i < a.length && lengths[(i + 1) * width + j] >= lengths[i * width + j + 1])) {
        first.push([a[i++], true]);
      } else {
        second.push([b[j++], true]);
      }
    }
    return [first, second];
  };

  const marked = (words, tag) => {
    const runs = [];
    for (const [said, changed] of words) {
      const last = runs[runs.length - 1];
      if (last && last[1] === changed) last[0] += said;
      else runs.push([said, changed]);
    }
    return runs.flatMap(([said, changed]) => {
      const word = said.trim();
      if (!changed || !word) return [said];
      const start = said.indexOf(word);
      return [said.slice(0, start), make(tag, {}, word), said.slice(start + word.length)];
    });
  };

  const itemRow = ({ kind, left: before, right: after }) => {
    const [first, second] =
      kind === "reworded"
        ? wordChanges(before, after)
        : [before === null ? [] : [[before, false]], after === null ? [] : [[after, false]]];
    const sign = make("th", { scope: "row" });
    sign.append(
      make("span", { ariaHidden: "true" }, MARKS[kind]),
      make("span", { className: "unseen" }, SPOKEN[kind]),
    );
    return make(
      "tr",
      { className: kind },
      sign,
      make("td", {}, ...marked(first, "del")),
      make("td", {}, ...marked(second, "ins")),
    );
  };

  const itemTable = (known) => {
    const fields = compared(known, left(), right());
    if (!fields) return null;
    const table = make("table", { className: "compared" });
    const head = ["", data.candidates[left()], data.candidates[right()]].map((name, place) =>
      place ? make("th", { scope: "col" }, name) : make("td", {}),
    );
    table.append(make("thead", {}, make("tr", {}, ...head)));
    for (const { path, rows } of fields) {
      const plain = rows.every((row) => row.kind === "same");
      const title = make("th", { scope: "rowgroup", colSpan: 3 }, path);
      table.append(
        make("tbody", { className: plain ? "plain" : "" }, make("tr", { className: "field" }, title), ...rows.map(itemRow)),
      );
    }
    return table;
  };

  // --- one case ---------------------------------------------------------------------------------

  const facts = (known, number) => {
    const answer = known.answers[number];
    const box = make("div", {});
    if (!answer) {
      box.append(make("h3", {}, `${data.candidates[number]}: not asked`));
      return box;
    }
    const is = wanted(known) ? (answer.label === wanted(known) ? " ✓" : ` ✗ (${wanted(known)} is right)`) : "";
    box.append(make("h3", {}, `${data.candidates[number]}: ${answer.label}${is}`));
    const told = [`metric ${answer.metric.toFixed(3)}`, `lost ${answer.lost.toFixed(3)}`];
    if (answer.raw !== undefined) told.push(`invalid; as it is ${answer.raw.toFixed(3)}`);
    if (answer.repaired !== undefined) told.push(`repaired ${answer.repaired.toFixed(3)}`);
    for (const [name, value] of Object.entries(answer.parts || {})) told.push(`${name} ${value.toFixed(2)}`);
    if (answer.coverage !== undefined) told.push(`requirements dealt with ${answer.coverage.toFixed(2)}`);
    if (answer.meaning !== undefined) told.push(`agreement in meaning ${answer.meaning.toFixed(2)}`);
    told.push(`finish ${answer.finish}`, `${answer.seconds} s`, `${answer.tokens} tokens`);
    if (answer.tries) told.push(`${answer.tries} tries`);
    box.append(make("p", { className: "soft" }, told.join(", ")));
    if (answer.cause) {
      const also = answer.also ? `; also ${answer.also.join(", ")}` : "";
      const cause = make("b", { className: "failed" }, `✗ ${answer.cause}`);
      box.append(make("p", {}, cause, ` (${answer.level}): ${answer.detail}${also}`));
    }
    if (answer.violations) {
      box.append(make("ul", { className: "violations" }, ...answer.violations.map((one) => make("li", {}, one))));
    }
    return box;
  };

  const folded = (title, open, ...inside) => make("details", { open }, make("summary", {}, title), ...inside);
  const block = (said) => make("pre", { tabIndex: 0 }, said);

  const rawAnswer = (known, number) => {
    const answer = known.answers[number];
    const said = answer ? text(answer.text) : null;
    const shown = said === null ? "(the answer is not in this page)" : said || "(nothing)";
    return make("div", {}, make("h4", {}, data.candidates[number]), block(shown));
  };

  const fill = (entry) => {
    if (texts === null) {
      unpacked.then(() => entry.node.open && fill(entry));
      return;
    }
    const { known, node } = entry;
    const shown = `${left()} ${right()}`;
    if (node.dataset.shown === shown) return;
    node.dataset.shown = shown;
    const both = left() === right() ? [right()] : [left(), right()];
    const box = make("div", { className: "case" });
    const concept = text(known.concept);
    if (concept !== null) box.append(make("p", { className: "concept" }, concept));
    if (text(known.requirements) !== null) box.append(folded("Requirements", false, block(text(known.requirements))));
    box.append(make("div", { className: "answers" }, ...both.map((number) => facts(known, number))));
    const items = both.length > 1 ? itemTable(known) : null;
    if (items) {
      box.append(make("div", { className: "scroll", tabIndex: 0 }, items));
      if (!both.includes(data.reference)) {
        box.append(make("p", { className: "soft" }, `Items are paired through those of ${data.candidates[data.reference]}.`));
      }
    }
    const raw = make("div", { className: "answers" }, ...both.map((number) => rawAnswer(known, number)));
    box.append(folded("Raw answers", !items, raw));
    node.lastElementChild.replaceWith(box);
  };

  // --- filter and order -------------------------------------------------------------------------

  const wordsOf = (entry) => {
    if (entry.words === null) {
      const { known } = entry;
      const said = [known.id, known.tier, known.expected, known.agreed, text(known.concept), text(known.requirements)];
      for (const answer of known.answers.filter(Boolean)) {
        said.push(answer.label, answer.cause, answer.detail, text(answer.text), ...(answer.violations || []));
      }
      entry.words = said.filter(Boolean).join("\n").toLowerCase();
    }
    return entry.words;
  };

  const inSlice = (known, slice) => {
    if (!slice) return true;
    const kind = slice.slice(0, slice.indexOf(":"));
    const name = slice.slice(kind.length + 1);
    return kind === "watch" ? known.watched : kind === "tier" ? known.tier === name : wanted(known) === name;
  };

  const filter = () => {
    const asked = control.words.value.toLowerCase().split(/\s+/).filter(Boolean);
    if (asked.length && texts === null) {
      unpacked.then(filter);
      return;
    }
    const [slice, cause, onlyFailures, number] = [control.slice.value, control.cause.value, control.failures.checked, right()];
    let [shown, failing] = [0, 0];
    for (const entry of entries) {
      const answer = entry.known.answers[number];
      const fits =
        (!onlyFailures || failed(answer)) &&
        (!cause || Boolean(answer && answer.cause === cause)) &&
        inSlice(entry.known, slice) &&
        (!asked.length || asked.every((word) => wordsOf(entry).includes(word)));
      if (entry.node.hidden === fits) entry.node.hidden = !fits;
      shown += fits;
      failing += fits && failed(answer);
    }
    const none = shown ? "" : ": clear the filters to see all";
    find("count").textContent =
      `${shown} of ${entries.length} cases shown${none}; ${data.candidates[number]} failed in ${failing} of them.`;
  };

  const ORDERS = {
    lost: (answer) => -answer.lost,
    metric: (answer) => answer.metric,
    seconds: (answer) => -answer.seconds,
  };

  const order = () => {
    const measure = ORDERS[control.order.value];
    const value = ({ known }) => (known.answers[right()] ? measure(known.answers[right()]) : Infinity);
    const sorted = [...entries].sort((a, b) =>
      measure ? value(a) - value(b) || a.number - b.number : a.known.id < b.known.id ? -1 : 1,
    );
    const nodes = [...list.querySelectorAll(":scope > .entry")];
    if (sorted.some((entry, place) => entry.node !== nodes[place])) list.append(...sorted.map((entry) => entry.node));
  };

  const listCauses = () => {
    const counts = new Map();
    for (const { known } of entries) {
      const cause = known.answers[right()]?.cause;
      if (cause) counts.set(cause, (counts.get(cause) || 0) + 1);
    }
    const chosen = control.cause.value;
    const options = [...counts].sort((a, b) => b[1] - a[1]).map(([cause, n]) => new Option(`${cause} (${n})`, cause));
    control.cause.replaceChildren(new Option("all", ""), ...options);
    control.cause.value = counts.has(chosen) ? chosen : "";
  };

  const chooseCandidate = () => {
    const name = data.candidates[right()];
    find("focus").textContent = name;
    find("whose").textContent = name;
    for (const { known, node } of entries) {
      const answer = known.answers[right()];
      node.querySelector(".cause").textContent = answer?.cause || "";
      node.querySelector(".lost").textContent = answer && answer.lost >= 0.0005 ? `−${answer.lost.toFixed(3)}` : "0";
    }
    listCauses();
  };

  const refill = () => entries.filter((entry) => entry.node.open).forEach(fill);
  const all = () => {
    order();
    filter();
    refill();
  };

  const clear = () => {
    control.words.value = control.slice.value = control.cause.value = "";
    control.failures.checked = false;
    filter();
  };

  // --- moving about -----------------------------------------------------------------------------

  const summaryOf = (node) => node.firstElementChild;
  const shownNodes = () => [...list.querySelectorAll(":scope > .entry:not([hidden])")];
  let latest = null;

  const focusOn = (node) => {
    if (!node) return;
    latest = node;
    summaryOf(node).focus();
    summaryOf(node).scrollIntoView({ block: "nearest" });
  };

  const move = (step) => {
    const nodes = shownNodes();
    const here = nodes.indexOf(document.activeElement.closest(".entry") || latest);
    focusOn(here < 0 ? nodes[0] : nodes[Math.min(nodes.length - 1, Math.max(0, here + step))]);
  };

  const close = () => {
    const inside = document.activeElement.closest(".entry[open]");
    const node = inside || shownNodes().find((each) => each.open);
    if (!node) return false;
    node.open = false;
    focusOn(node);
    return true;
  };

  const openCase = (hash) => {
    const node = /^#case-\d+$/.test(hash) ? document.querySelector(hash) : null;
    if (!node) return;
    if (node.hidden) clear();
    node.open = true;
    focusOn(node);
  };

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key !== "Escape" && !control.keys.checked) return;
    const typing = event.target.matches("input[type=search], select, textarea");
    if (event.key === "Escape") {
      if (event.target === control.words && control.words.value) return; // the browser empties it
      if (event.target === control.words) focusOn(shownNodes()[0]);
      else close();
    } else if (typing) {
      if (event.target === control.words && (event.key === "Enter" || event.key === "ArrowDown")) {
        event.preventDefault();
        focusOn(shownNodes()[0]);
      }
    } else if (event.key === "/") {
      event.preventDefault();
      control.words.focus();
      control.words.select();
    } else {
      const inList = event.target.matches(".entry > summary");
      const step = { j: 1, k: -1, ...(inList ? { ArrowDown: 1, ArrowUp: -1 } : {}) }[event.key];
      if (step) {
        event.preventDefault();
        move(step);
      }
    }
  });

  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-candidate]");
    if (!link) return;
    control.right.value = link.dataset.candidate;
    if (control.left.value === control.right.value && data.reference !== null) control.left.value = data.reference;
    chooseCandidate();
    clear();
    if (link.dataset.cause) control.cause.value = link.dataset.cause;
    all();
    if (link.hash === location.hash) openCase(link.hash); // the hash does not change, so nothing else opens it
  });

  list.addEventListener(
    "toggle",
    (event) => {
      if (event.target.matches(".entry") && event.target.open) fill(entryOf(event.target));
    },
    true,
  );

  let printed = [];
  addEventListener("beforeprint", () => {
    const nodes = shownNodes().filter((node) => failed(entryOf(node).known.answers[right()]));
    printed = shownNodes().some((node) => node.open) ? [] : nodes.slice(0, MOST_PRINTED);
    printed.forEach((node) => {
      fill(entryOf(node));
      node.open = true;
    });
  });
  addEventListener("afterprint", () => {
    printed.forEach((node) => (node.open = false));
    printed = [];
  });
  addEventListener("hashchange", () => openCase(location.hash));

  control.words.addEventListener("input", filter);
  control.slice.addEventListener("change", filter);
  control.cause.addEventListener("change", filter);
  control.failures.addEventListener("change", filter);
  control.order.addEventListener("change", order);
  control.left.addEventListener("change", refill);
  control.right.addEventListener("change", () => {
    chooseCandidate();
    all();
  });
  control.differing.addEventListener("change", () => list.classList.toggle("differing", control.differing.checked));
  find("clear").addEventListener("click", clear);

  // A browser that comes back to the page has kept the controls as they were.
  chooseCandidate();
  all();
  list.classList.toggle("differing", control.differing.checked);
  document.documentElement.classList.add("scripted");
  find("controls").hidden = false;
  openCase(location.hash);
})();
