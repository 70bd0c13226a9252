// One script for the explorer in a notebook and for the pages that reports write: plain ES, no
// bundler. A page calls enhance(element); a notebook calls render({ model, el }).

/** Let people point at tokens, hide lines by their legend and sort tables. */
export function enhance(root) {
  root.addEventListener("mouseover", (event) => {
    const line = event.target.closest(".rl-line");
    const told = line?.closest(".rl-tokens").querySelector(".rl-told");
    if (told) told.textContent = event.target.title || "";
  });
  root.addEventListener("click", (event) => {
    const entry = event.target.closest(".rl-entry");
    if (entry) toggle(entry);
    const header = event.target.closest(".rl-sortable th");
    if (header) sort(header);
  });
}

function toggle(entry) {
  const hidden = entry.classList.toggle("rl-off");
  for (const trace of entry.closest("svg").querySelectorAll(".rl-trace")) {
    if (trace.dataset.group === entry.dataset.group) trace.style.display = hidden ? "none" : "";
  }
}

function sort(header) {
  const table = header.closest("table");
  const column = [...header.parentNode.children].indexOf(header);
  const down = header.getAttribute("aria-sort") === "ascending";
  for (const other of header.parentNode.children) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", down ? "descending" : "ascending");
  const cell = (row) => row.children[column].textContent.trim();
  const rows = [...table.tBodies[0].rows].sort((a, b) => compare(cell(a), cell(b)));
  table.tBodies[0].append(...(down ? rows.reverse() : rows));
}

function compare(a, b) {
  const [x, y] = [parseFloat(a), parseFloat(b)];
  if (Number.isNaN(x) || Number.isNaN(y)) return a.localeCompare(b);
  return x - y;
}

const PAGE = `
<div class="rl-controls">
  <label>name <select data-key="name"></select></label>
  <label>layer <select data-key="layer"></select></label>
  <label>position <select data-key="position"></select></label>
  <label>tokens <select data-key="tokens"></select></label>
  <label>change <select data-key="change"></select></label>
  <label class="rl-wide">alpha <input data-key="alpha" type="range" step="0.05">
    <output class="rl-alpha"></output></label>
  <p class="rl-strength" aria-live="polite"></p>
</div>
<div class="rl-tabs" role="tablist">
  <button role="tab" data-tab="compare">Steered beside unsteered</button>
  <button role="tab" data-tab="chat">Chat</button>
  <button role="tab" data-tab="look">Where it acts</button>
</div>
<section data-page="compare">
  <textarea class="rl-prompt" rows="2" aria-label="prompt"></textarea>
  <div class="rl-buttons">
    <button class="rl-run">Run</button><button class="rl-stop">Stop</button>
    <button class="rl-copy">Copy as code</button><span class="rl-state" aria-live="polite"></span>
  </div>
  <div class="rl-pair">
    <div><b>steered</b><pre class="rl-steered"></pre></div>
    <div><b>unsteered</b><pre class="rl-unsteered"></pre></div>
  </div>
</section>
<section data-page="chat" hidden>
  <div class="rl-pair">
    <div><div class="rl-turns"></div>
      <form class="rl-say"><input aria-label="say something" placeholder="Say something">
        <button>Send</button><button type="button" class="rl-stop">Stop</button>
        <button type="button" class="rl-forget">Start again</button></form></div>
    <div class="rl-chart"></div>
  </div>
  <div class="rl-view"></div>
</section>
<section data-page="look" hidden>
  <div class="rl-curve"></div>
  <div class="rl-heat"></div>
  <p class="rl-writes"></p>
  <p><button class="rl-read">Read as text</button> <span class="rl-reading"></span></p>
</section>
<p class="rl-error" role="alert"></p>`;

function render({ model, el }) {
  const root = document.createElement("div");
  root.className = "rolelens";
  root.innerHTML = PAGE;
  el.append(root);
  enhance(root);
  const one = (selector) => root.querySelector(selector);
  let sent = 0;

  const send = (what, more = {}) => {
    model.set("command", { ...more, do: what, id: `${Date.now()}-${(sent += 1)}` });
    model.save_changes();
  };
  const choose = (changes) => {
    model.set("choice", { ...model.get("choice"), ...changes });
    model.save_changes();
  };

  const fill = () => {
    for (const [key, values] of Object.entries(model.get("options"))) {
      const select = one(`select[data-key=${key}]`);
      select.replaceChildren(...values.map((value) => new Option(value ?? "none", JSON.stringify(value))));
    }
    const slider = one("input[data-key=alpha]");
    [slider.min, slider.max] = model.get("alphas");
  };
  const showChoice = () => {
    const choice = model.get("choice");
    for (const select of root.querySelectorAll("select[data-key]")) {
      select.value = JSON.stringify(choice[select.dataset.key]);
    }
    const slider = one("input[data-key=alpha]");
    if (document.activeElement !== slider || !slider.dataset.held) slider.value = choice.alpha;
    slider.disabled = choice.change === "ablate";
    one(".rl-alpha").textContent = Number(choice.alpha).toFixed(2);
    const prompt = one(".rl-prompt");
    if (document.activeElement !== prompt) prompt.value = choice.prompt;
    mark();
  };
  const showStrength = () => {
    const strength = model.get("strength");
    one(".rl-strength").textContent = strength.text;
    one(".rl-strength").classList.toggle("rl-warned", strength.warned);
  };
  const showTexts = () => {
    const texts = model.get("texts");
    one(".rl-steered").textContent = texts.steered;
    one(".rl-unsteered").textContent = texts.unsteered;
  };
  const showState = () => {
    const running = model.get("state") === "running";
    one(".rl-state").textContent = model.get("state");
    for (const button of root.querySelectorAll(".rl-stop")) button.disabled = !running;
  };
  const showError = () => (one(".rl-error").textContent = model.get("error"));
  const showTurns = () => {
    one(".rl-turns").replaceChildren(
      ...model.get("turns").map((turn) => {
        const line = document.createElement("div");
        line.className = `rl-turn rl-${turn.role}`;
        line.textContent = turn.content;
        if (turn.projection != null) line.title = `projection ${turn.projection.toFixed(3)}`;
        return line;
      }),
    );
  };
  // What the kernel drew: SVG and coloured text, in which everything a user wrote is escaped.
  const showDrawn = () => {
    const drawn = model.get("drawn");
    for (const name of ["curve", "heat", "chart", "view"]) one(`.rl-${name}`).innerHTML = drawn[name] || "";
    one(".rl-writes").textContent = drawn.writes || "";
    one(".rl-reading").textContent = drawn.reading || "";
    mark();
  };
  const mark = () => {
    const choice = model.get("choice");
    const curve = one(".rl-curve svg");
    curve?.querySelector(".rl-here")?.remove();
    const point = curve?.querySelector(`circle[data-x="${choice.layer}"]`);
    if (point) {
      const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
      const { height } = curve.viewBox.baseVal;
      const x = point.getAttribute("cx");
      for (const [name, value] of Object.entries({ x1: x, x2: x, y1: 60, y2: height - 50 })) {
        line.setAttribute(name, value);
      }
      line.setAttribute("class", "rl-here");
      curve.append(line);
    }
    for (const cell of root.querySelectorAll(".rl-heat .rl-cell")) {
      const here = cell.dataset.x === String(choice.layer) &&
        cell.dataset.y === String(choice.position ?? "none") &&
        model.get("panels")[cell.dataset.panel] === choice.alpha;
      cell.classList.toggle("rl-chosen", here);
    }
  };

  for (const select of root.querySelectorAll("select[data-key]")) {
    select.addEventListener("change", () => {
      choose({ [select.dataset.key]: JSON.parse(select.value) });
      send("compare");
    });
  }
  const slider = one("input[data-key=alpha]");
  slider.addEventListener("input", () => {
    slider.dataset.held = "yes";
    choose({ alpha: Number(slider.value) });
  });
  slider.addEventListener("change", () => {
    delete slider.dataset.held;
    choose({ alpha: Number(slider.value) });
    send("compare");
  });
  one(".rl-prompt").addEventListener("input", (event) => choose({ prompt: event.target.value }));
  one(".rl-run").addEventListener("click", () => send("compare"));
  for (const stop of root.querySelectorAll(".rl-stop")) stop.addEventListener("click", () => send("stop"));
  one(".rl-forget").addEventListener("click", () => send("forget"));
  one(".rl-read").addEventListener("click", () => send("read"));
  one(".rl-say").addEventListener("submit", (event) => {
    event.preventDefault();
    const input = event.target.querySelector("input");
    if (input.value.trim()) send("say", { text: input.value.trim() });
    input.value = "";
  });
  // A notebook has its own meaning for keys; what is typed here stays here.
  root.addEventListener("keydown", (event) => event.stopPropagation());
  one(".rl-copy").addEventListener("click", async () => {
    const code = model.get("code");
    try {
      await navigator.clipboard.writeText(code);
      one(".rl-state").textContent = "copied";
    } catch {
      const box = document.createElement("textarea");
      box.value = code;
      box.className = "rl-code";
      one(".rl-code")?.remove();
      one(".rl-buttons").after(box);
      box.select();
    }
  });
  one(".rl-curve").addEventListener("click", (event) => {
    const layer = Number(event.target.dataset?.x);
    if (event.target.tagName === "circle" && model.get("options").layer.includes(layer)) {
      choose({ layer });
      send("compare");
    }
  });
  one(".rl-heat").addEventListener("click", (event) => {
    const cell = event.target.closest(".rl-cell");
    if (!cell) return;
    const position = cell.dataset.y === "none" ? null : Number(cell.dataset.y);
    const alpha = model.get("panels")[cell.dataset.panel];
    choose({ layer: Number(cell.dataset.x), position, alpha, ...model.get("swept") });
    send("compare");
    open("compare");
  });
  const open = (name) => {
    for (const page of root.querySelectorAll("[data-page]")) page.hidden = page.dataset.page !== name;
    for (const tab of root.querySelectorAll("[data-tab]")) {
      tab.setAttribute("aria-selected", tab.dataset.tab === name);
    }
  };
  for (const tab of root.querySelectorAll("[data-tab]")) {
    tab.addEventListener("click", () => open(tab.dataset.tab));
  }

  const listeners = {
    "change:options": fill, "change:choice": showChoice, "change:strength": showStrength,
    "change:texts": showTexts, "change:state": showState, "change:error": showError,
    "change:turns": showTurns, "change:drawn": showDrawn,
  };
  for (const [event, show] of Object.entries(listeners)) model.on(event, show);
  fill();
  for (const show of Object.values(listeners).slice(1)) show();
  open("compare");
  return () => {
    for (const [event, show] of Object.entries(listeners)) model.off(event, show);
  };
}

export default { render };
