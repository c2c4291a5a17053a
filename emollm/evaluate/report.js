(() => {
  "use strict";
  const byId = (id) => document.getElementById(id);
  const data = JSON.parse(byId("data").textContent);
  const { media, highlights, tasks, baselines } = data;
  const PAGE = 50;
  const filters = byId("filters"), rows = byId("rows"), dialog = byId("sample"), body = byId("body");
  let index, texts, runs, found = [], page = 0, open = -1, run = 0, opener = null, words = null;

  const unpack = async (text) => {
    const binary = atob(text), bytes = new Uint8Array(binary.length);
    for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
    return JSON.parse(await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text());
  };
  const chunks = new Map();
  const details = async (place) => {
    const number = Math.floor(place / index.chunk);
    if (!chunks.has(number)) chunks.set(number, unpack(data.chunks[number]));
    return (await chunks.get(number))[place % index.chunk];
  };
  const make = (tag, className, text) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) { node.textContent = text; if (tag === "b" || tag === "td" || tag === "pre") node.dir = "auto"; }
    return node;
  };
  const percent = (p, digits) => p === null ? "–" : `${(100 * p).toFixed(digits)} %`;
  const letter = (number) => "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[number];
  const taskOf = (place) => texts[index.task[place]], goldOf = (place) => texts[index.gold[place]];
  const said = (place, of) => {
    const answer = texts[of.answer[place]], counts = texts[of.counts[place]], status = texts[of.status[place]];
    if (status !== "ok") return `${answer || "nothing"} (${status.replace("_", " ")})`;
    return counts && counts !== answer ? `${answer} (counts as ${counts})` : answer;
  };
  const picture = (place) => {
    const number = index.pictures[place];
    if (number === undefined) return null;
    const [uri, frames] = media[number], image = make("img", frames > 1 ? "clip" : "");
    const box = make("div", index.demo[place] ? "pic wide" : "pic");
    image.src = uri; image.alt = ""; image.decoding = "async";
    image.style.setProperty("--n", frames);
    box.append(image);
    return box;
  };
  const verdict = (place, of, prefix) => {
    const line = make("div", of.right[place] ? "right" : "wrong");
    line.append(`${prefix}${of.right[place] ? "✓" : "✗"} `, make("b", "", said(place, of)));
    return line;
  };
  const described = (place) => `${tasks[taskOf(place)]}: gold ${goldOf(place)}; ` +
    runs.map((of, n) => `${runs.length > 1 ? letter(n) : "model"} ${said(place, of)}, ${of.right[place] ? "right" : "wrong"}`).join("; ");

  const matching = () => {
    const value = (name) => filters.elements[name] ? filters.elements[name].value : "";
    const number = (name) => value(name) === "" ? -1 : texts.indexOf(value(name));
    const task = number("task"), source = number("source"), gold = number("gold"), status = number("status");
    const outcome = value("outcome"), agreement = value("agreement"), order = value("order"), of = runs[run];
    const wanted = value("words").trim().toLowerCase();
    if (wanted && !words) words = index.uid.map((uid, place) => [uid, goldOf(place), ...runs.map((r) => texts[r.answer[place]])].join("\n").toLowerCase());
    const kept = [];
    for (let place = 0; place < index.uid.length; place++) {
      if (task >= 0 && index.task[place] !== task) continue;
      if (source >= 0 && index.source[place] !== source) continue;
      if (gold >= 0 && index.gold[place] !== gold) continue;
      if (status >= 0 && of.status[place] !== status) continue;
      if (outcome && of.right[place] !== (outcome === "right" ? 1 : 0)) continue;
      if (agreement) {
        let right = 0;
        for (const r of runs) right += r.right[place];
        if (agreement === "differ" && (right === 0 || right === runs.length)) continue;
        if (agreement === "all" && right < runs.length) continue;
        if (agreement === "none" && right > 0) continue;
        if (agreement.startsWith("only") && !(right === 1 && runs[+agreement.slice(4)].right[place])) continue;
      }
      if (wanted && !words[place].includes(wanted)) continue;
      kept.push(place);
    }
    const p = (place) => of.p[place] === null ? -1 : of.p[place];
    if (order === "sure") kept.sort((a, b) => p(b) - p(a) || a - b);
    if (order === "unsure") kept.sort((a, b) => (p(a) < 0) - (p(b) < 0) || p(a) - p(b) || a - b);
    return kept;
  };
  const cell = (name, className, text) => {
    const td = make("td", className, text);
    td.dataset.name = name;
    return td;
  };
  const list = () => {
    const of = runs[run], start = page * PAGE, nodes = [];
    for (const place of found.slice(start, start + PAGE)) {
      const tr = make("tr"), th = make("th"), button = make("button", "name");
      th.scope = "row";
      button.type = "button";
      button.dataset.place = place;
      const small = picture(place);
      if (small) { small.setAttribute("aria-hidden", "true"); button.append(small); }
      const name = make("b", "", index.uid[place]);
      button.append(name);
      th.append(button);
      tr.append(th, cell("Sub-task", "", tasks[taskOf(place)]), cell("Source", "", texts[index.source[place]]), cell("Gold", "", goldOf(place)));
      runs.forEach((one, n) => {
        const td = cell(runs.length > 1 ? letter(n) : "Answer", one.right[place] ? "right" : "wrong", "");
        const mark = make("span", "", one.right[place] ? "✓ " : "✗ ");
        mark.setAttribute("aria-hidden", "true");
        td.append(mark, make("b", "", said(place, one)), make("span", "hide", one.right[place] ? ", right" : ", wrong"));
        tr.append(td);
      });
      tr.append(cell("Probability", "number", percent(of.p[place], 1)), cell("Status", "", texts[of.status[place]].replace("_", " ")));
      nodes.push(tr);
    }
    rows.replaceChildren(...nodes);
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    byId("page").textContent = `page ${page + 1} of ${pages}`;
    byId("first").disabled = byId("back").disabled = page === 0;
    byId("next").disabled = byId("last").disabled = page >= pages - 1;
  };
  const count = () => {
    const of = runs[run];
    let right = 0;
    for (const place of found) right += of.right[place];
    const number = (n) => n.toLocaleString("en");
    byId("count").textContent = `${number(found.length)} of ${number(index.uid.length)} samples` +
      (found.length ? `; ${runs.length > 1 ? letter(run) + ": " : ""}${number(right)} right, ${number(found.length - right)} wrong` : "; widen the filters");
  };
  const filter = () => { found = matching(); page = 0; list(); count(); };
  const turn = (to) => { page = to; list(); byId("list").scrollIntoView({ block: "start" }); };

  const bars = (sample, scores) => {
    const box = make("div", "bars");
    sample.options.forEach((option, n) => {
      const bar = make("i", sample.gold.includes(option) ? "gold" : "");
      bar.style.width = `${100 * scores[n]}%`;
      const name = make("b", sample.gold.includes(option) ? "gold" : "", option);
      box.append(name, bar, make("em", "", percent(scores[n], 0)));
    });
    return box;
  };
  const show = async (place) => {
    open = place;
    const right = runs[run].right[place], title = make("h3", "", `${tasks[taskOf(place)]}: ${runs.length > 1 ? letter(run) + " " : ""}${right ? "right" : "wrong"}`);
    title.id = "sample-title";
    const gold = make("div", "", "gold "), box = make("div", "verdict");
    gold.append(make("b", "", goldOf(place)));
    box.append(gold, ...runs.map((of, n) => verdict(place, of, runs.length > 1 ? `${letter(n)} ` : "")));
    const shown = picture(place), rest = make("div");
    body.replaceChildren(title, make("p", "small soft", (index.demo[place] ? `${data.demonstration}; ` : "") + texts[index.source[place]]), ...(shown ? [shown] : []), box, rest);
    const at = found.indexOf(place);
    byId("sample-back").disabled = at <= 0;
    byId("sample-next").disabled = at < 0 || at === found.length - 1;
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
    const sample = await details(place);
    if (open !== place) return;
    rest.append(make("pre", "", sample.prompt));
    sample.runs.forEach((one, n) => {
      if (runs.length > 1) rest.append(make("h4", "", `${letter(n)} ${runs[n].name}`));
      if (one.scores.length) rest.append(bars(sample, one.scores));
      else rest.append(make("p", "small", runs[n].p[place] === null ? "No probability: the answer was generated." : `Probability of this answer: ${percent(runs[n].p[place], 1)}`));
      if (one.text) rest.append(make("p", "small soft", "said in full:"), make("pre", "", one.text));
      if (one.others.length) rest.append(make("p", "small", one.others.map(([name, answer, hit]) => `${baselines[name]}: ${answer || "nothing"} ${hit ? "✓" : "✗"}`).join(" · ")));
    });
    rest.append(make("p", "small soft", `${index.uid[place]}, group ${sample.group}`));
  };
  const step = (by) => {
    const at = found.indexOf(open) + by;
    if (found.indexOf(open) >= 0 && at >= 0 && at < found.length) show(found[at]);
  };
  const card = (place) => {
    const button = make("button"), box = make("div", "verdict"), gold = make("div", "", "gold ");
    button.type = "button";
    button.dataset.place = place;
    button.setAttribute("aria-label", described(place));
    gold.append(make("b", "", goldOf(place)));
    const p = runs[run].p[place];
    box.append(gold, verdict(place, runs[run], ""), make("div", "soft", p === null ? "" : percent(p, 0)));
    const shown = picture(place);
    if (shown) button.append(shown);
    button.append(box);
    return button;
  };
  const lists = () => {
    const nodes = [];
    for (const task of Object.keys(tasks).filter((name) => highlights[run][name])) {
      const part = make("details", "card"), of = highlights[run][task];
      part.append(make("summary", "", tasks[task]));
      part.open = nodes.length === 0;
      for (const [title, places] of [["Most confidently wrong", of.confident], ["Hardest", of.hardest]]) {
        if (!places.length) continue;
        const grid = make("ul", "tiles");
        for (const place of places) { const entry = make("li"); entry.append(card(place)); grid.append(entry); }
        part.append(make("h3", "spaced", title), grid);
      }
      nodes.push(part);
    }
    if (!nodes.length) nodes.push(make("p", "", "Every answer is right."));
    byId("lists").replaceChildren(...nodes);
  };
  const choose = (number) => {
    run = number;
    document.querySelectorAll("[data-run]").forEach((part) => { part.hidden = +part.dataset.run !== run; });
    lists();
    filter();
  };

  const start = async () => {
    index = await unpack(data.index);
    ({ texts, runs } = index);
    document.documentElement.classList.toggle("several", runs.length > 1);
    choose(0);
  };
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-place]");
    if (button) { opener = button; show(+button.dataset.place); }
  });
  document.querySelectorAll("input[name=run]").forEach((input) => input.addEventListener("change", () => choose(+input.value)));
  filters.addEventListener("submit", (event) => event.preventDefault());
  filters.addEventListener("input", () => { if (index) filter(); });
  filters.addEventListener("reset", () => setTimeout(() => { if (index) filter(); }));
  byId("first").addEventListener("click", () => turn(0));
  byId("back").addEventListener("click", () => turn(page - 1));
  byId("next").addEventListener("click", () => turn(page + 1));
  byId("last").addEventListener("click", () => turn(Math.ceil(found.length / PAGE) - 1));
  byId("sample-back").addEventListener("click", () => step(-1));
  byId("sample-next").addEventListener("click", () => step(1));
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("close", () => {
    const at = found.indexOf(open);
    if (opener && +opener.dataset.place !== open && at >= 0) {
      if (Math.floor(at / PAGE) !== page) { page = Math.floor(at / PAGE); list(); }
      opener = rows.querySelector(`button[data-place="${open}"]`);
    }
    if (opener && opener.isConnected) opener.focus();
    open = -1;
  });
  if (typeof DecompressionStream === "undefined") byId("count").textContent = "This browser is too old to unpack the samples; samples.parquet beside this page holds every answer.";
  else start().catch((error) => { byId("count").textContent = `The samples could not be unpacked: ${error}`; });
})();
