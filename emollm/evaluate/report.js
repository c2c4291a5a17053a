(() => {
  "use strict";
  const { items, media } = JSON.parse(document.getElementById("gallery").textContent);
  const names = JSON.parse(document.getElementById("names").textContent);
  const grid = document.getElementById("grid"), count = document.getElementById("count");
  const more = document.getElementById("more"), dialog = document.getElementById("sample");
  const PAGE = 48;
  let found = [], shown = 0, open = -1;

  const make = (tag, className, text) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const picture = (item) => {
    const box = make("div", item.demo ? "pic wide" : "pic");
    if (item.media === null) { box.textContent = "no picture"; return box; }
    const [uri, frames] = media[item.media], image = make("img", frames > 1 ? "clip" : "");
    image.src = uri; image.alt = ""; image.decoding = "async";
    image.style.setProperty("--n", frames);
    box.append(image);
    return box;
  };
  const said = (item) => item.status === "ok"
    ? item.answer + (item.options.length || item.counts === item.answer ? "" : ` (counts as ${item.counts})`)
    : `${item.answer || "nothing"} (${item.status})`;
  const verdict = (item) => {
    const box = make("div", "verdict");
    const gold = make("div", "", "gold "), answer = make("div", item.right ? "right" : "wrong");
    gold.append(make("b", "", item.gold));
    answer.append(item.right ? "✓ " : "✗ ", make("b", "", said(item)));
    box.append(gold, answer, make("div", "soft", names[item.task]));
    return box;
  };
  const page = () => {
    for (const item of found.slice(shown, shown + PAGE)) {
      const index = found.indexOf(item), entry = make("li"), button = make("button");
      button.type = "button";
      button.setAttribute("aria-label", `${names[item.task]}: gold ${item.gold}, model ${said(item)}, ${item.right ? "right" : "wrong"}`);
      button.append(picture(item), verdict(item));
      button.addEventListener("click", () => show(index));
      entry.append(button);
      grid.append(entry);
    }
    shown = Math.min(found.length, shown + PAGE);
    more.hidden = shown >= found.length;
    const right = found.filter((item) => item.right).length;
    count.textContent = `${found.length} samples, ${right} right, ${found.length - right} wrong` + (shown < found.length ? `; ${shown} on the page` : "");
  };
  const filter = () => {
    const task = document.querySelector("input[name=task]:checked").value;
    const outcome = document.querySelector("input[name=outcome]:checked").value;
    found = items.filter((item) => (task === "all" || item.task === task) && (outcome === "all" || item.right === (outcome === "right")));
    shown = 0;
    grid.replaceChildren();
    page();
  };
  const bars = (item) => {
    const box = make("div", "bars");
    for (const [option, p] of item.options) {
      const bar = make("i", item.gold.split(" / ").includes(option) ? "gold" : "");
      bar.style.width = `${100 * p}%`;
      box.append(make("span", "", option), bar, make("em", "", `${(100 * p).toFixed(0)} %`));
    }
    return box;
  };
  const show = (index) => {
    open = index;
    const item = found[index], body = document.getElementById("body");
    const title = make("h3", "", `${names[item.task]}: ${item.right ? "right" : "wrong"}`);
    title.id = "sample-title";
    const others = item.others.map(([name, answer, right]) => `${name}: ${answer || "nothing"} ${right ? "✓" : "✗"}`).join(" · ");
    body.replaceChildren(title, make("p", "small soft", item.demo ? "demonstration, separable by style" : item.source), picture(item), verdict(item), make("pre", "", item.prompt));
    if (item.options.length) body.append(bars(item)); else body.append(make("p", "small", `Probability of this answer: ${(100 * item.p).toFixed(1)} %`));
    if (others) body.append(make("p", "small", others));
    body.append(make("p", "small soft", item.uid));
    document.getElementById("back").disabled = index === 0;
    document.getElementById("next").disabled = index === found.length - 1;
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
  };
  const step = (by) => { if (found[open + by]) show(open + by); };
  document.querySelectorAll(".filters input").forEach((input) => input.addEventListener("change", filter));
  more.addEventListener("click", page);
  document.getElementById("back").addEventListener("click", () => step(-1));
  document.getElementById("next").addEventListener("click", () => step(1));
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("close", () => { const button = grid.children[open]?.firstChild; if (button) button.focus(); });
  filter();
})();
