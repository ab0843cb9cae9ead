"use strict";

const AT_ONCE = 2; // requests
const TRIES = 20; // of a request while the service is busy
const SURE = 0.15; // below it, most first guesses are wrong

const find = (id) => document.getElementById(id);
const status = find("status");
const answers = []; // {name, answer} in the order of the cards
const waiting = []; // functions that send a request
const urls = []; // of the photographs that cards show
let running = 0, done = 0, total = 0;
let about = null;
let key = sessionStorage.getItem("key") || "";

function headers(more = {}) {
  return key ? { Authorization: `Bearer ${key}`, ...more } : more;
}

async function describe() {
  const response = await fetch("v1/model", { headers: headers() }).catch(() => null);
  if (response && response.status === 401) {
    find("key-form").hidden = false;
    find("about").textContent = "The service asks for a key.";
    return;
  }
  if (!response || !response.ok) {
    find("about").textContent = "The service does not answer. It may still be starting.";
    setTimeout(describe, 1000);
    return;
  }
  about = await response.json();
  const size = about.size ? `, ${about.size} pixels` : "";
  find("about").textContent =
    `${about.model} (${about.weights.split("/").pop()}): ${about.classes.length} classes${size}, in ${about.engine}`;
  const authorization = key ? " -H 'Authorization: Bearer KEY'" : "";
  find("curl").textContent =
    `curl${authorization} --data-binary @photo.jpg ${location.origin}/v1/predict`;
}

const pause = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));

// A POST that is sent again while the service is busy.
async function post(path, file, more = {}) {
  for (let attempt = 1; ; attempt += 1) {
    const response = await fetch(path, {
      method: "POST",
      body: file,
      headers: headers({ "Content-Type": "application/octet-stream", ...more }),
    });
    if (response.status === 401) find("key-form").hidden = false;
    const busy = response.status === 429 || response.status === 503;
    const answer = await response.json().catch(() => ({ error: { message: "The service did not answer with JSON." } }));
    if (!busy || attempt === TRIES) return answer;
    status.textContent = "The service is busy. Trying again ...";
    await pause(Number(response.headers.get("Retry-After")) || 1);
  }
}

function query() {
  return about && about.task !== "classification" ? "draw=true" : "topk=5";
}

function guess(label, share) {
  const item = document.createElement("li");
  const name = document.createElement("span");
  name.className = "label";
  name.textContent = label;
  const percent = document.createElement("span");
  percent.className = "share";
  percent.textContent = `${(100 * share).toFixed(1)} %`;
  const bar = document.createElement("progress");
  bar.value = share;
  bar.setAttribute("aria-label", `${label}, ${percent.textContent}`);
  item.append(name, percent, bar);
  return item;
}

function show(card, file, answer, milliseconds) {
  const list = card.querySelector(".guesses");
  const note = card.querySelector(".note");
  if (answer.error) {
    note.textContent = answer.error.message;
    note.classList.add("bad");
    return;
  }
  const rows = answer.predictions
    ? answer.predictions.map((each) => [each.label, each.probability])
    : answer.objects
      ? answer.objects.map((each) => [each.label, each.score])
      : answer.classes.map((each) => [each.label, each.share]);
  list.append(...rows.slice(0, 20).map(([label, share]) => guess(label, share)));
  const doubt = answer.predictions && rows.length && rows[0][1] < SURE ? "Not sure. " : "";
  note.textContent = `${rows.length ? doubt : "Nothing found. "}${Math.round(milliseconds)} ms`;
  if (answer.picture) {
    const image = card.querySelector("img");
    URL.revokeObjectURL(image.src); // it is not shown again
    image.src = answer.picture;
    image.hidden = false;
    image.alt = `${file.name} with ${rows.length ? rows.map((row) => row[0]).join(", ") : "nothing"}`;
  }
  if (answer.predictions && rows.length && about && about.explains) explainable(card, file, answer.predictions[0]);
}

function explainable(card, file, best) {
  const button = card.querySelector(".explain");
  const image = card.querySelector("img");
  const plain = { src: image.src, alt: image.alt };
  let explained = null;
  button.hidden = false;
  button.addEventListener("click", async () => {
    if (button.getAttribute("aria-pressed") === "true") {
      Object.assign(image, plain);
      button.setAttribute("aria-pressed", "false");
      return;
    }
    if (!explained) {
      button.disabled = true;
      const found = await post(`v1/explain?label=${best.index}`, file).catch(failed);
      button.disabled = false;
      button.focus();
      if (found.error) {
        status.textContent = found.error.message;
        return;
      }
      explained = {
        src: found.picture,
        alt: `Heat map of ${found.label} in ${file.name}: ${found.meaning}, ${found.grid.join(" by ")} places`,
      };
    }
    Object.assign(image, explained, { hidden: false });
    button.setAttribute("aria-pressed", "true");
    status.textContent = explained.alt;
  });
}

const failed = () => ({ error: { message: "The service does not answer. Try again later." } });

function add(files) {
  for (const file of files) {
    const card = find("card").content.cloneNode(true).querySelector("li");
    const image = card.querySelector("img");
    image.src = URL.createObjectURL(file);
    urls.push(image.src);
    image.alt = file.name;
    image.addEventListener("error", () => { image.hidden = true; }, { once: true });
    card.querySelector("h2").textContent = file.name;
    card.querySelector(".note").textContent = "Waiting ...";
    find("results").append(card);
    const entry = { name: file.name, answer: null };
    answers.push(entry);
    total += 1;
    waiting.push(async () => {
      const started = performance.now();
      entry.answer = await post(`v1/predict?${query()}`, file).catch(failed);
      show(card, file, entry.answer, performance.now() - started);
    });
  }
  find("tools").hidden = answers.length === 0;
  next();
}

function next() {
  while (running < AT_ONCE && waiting.length) {
    running += 1;
    waiting.shift()().finally(() => {
      running -= 1;
      done += 1;
      next();
    });
  }
  if (total) {
    status.textContent =
      done < total ? `${done} of ${total} photographs answered` : `${total} ${total === 1 ? "photograph" : "photographs"} answered`;
  }
}

function save(name, type, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  URL.revokeObjectURL(link.href);
}

function withoutPictures({ name, answer }) {
  const { picture, ...rest } = answer || { error: { message: "not answered yet" } };
  return { ...rest, name };
}

// A quoted cell that no spreadsheet takes for a formula, as OWASP advises.
function cell(value) {
  const text = String(value);
  const safe = typeof value === "string" && /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
  return `"${safe.replaceAll('"', '""')}"`;
}

function csv() {
  const rows = [["name", "rank", "label", "index", "value", "error"]];
  for (const { name, answer } of answers) {
    if (!answer || answer.error) {
      rows.push([name, "", "", "", "", answer ? answer.error.message : "not answered yet"]);
      continue;
    }
    const list = answer.predictions || answer.objects || answer.classes;
    list.forEach((each, rank) => {
      const value = each.probability ?? each.score ?? each.share;
      rows.push([name, rank + 1, each.label, each.index, value, ""]);
    });
  }
  return rows.map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
}

for (const id of ["files", "camera"]) {
  find(id).addEventListener("change", (event) => {
    add(event.target.files);
    event.target.value = "";
  });
}
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  find("drop").classList.add("over");
});
document.addEventListener("dragleave", () => find("drop").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  find("drop").classList.remove("over");
  add(event.dataTransfer.files);
});
document.addEventListener("paste", (event) => add(event.clipboardData.files));
find("json").addEventListener("click", () =>
  save("answers.json", "application/json", JSON.stringify(answers.map(withoutPictures), null, 2)));
find("csv").addEventListener("click", () => save("answers.csv", "text/csv", csv()));
find("clear").addEventListener("click", () => {
  urls.splice(0).forEach((url) => URL.revokeObjectURL(url));
  find("results").replaceChildren();
  answers.length = waiting.length = 0;
  done = 0;
  total = running;
  find("tools").hidden = true;
  status.textContent = "";
  find("files").focus();
});
find("copy").addEventListener("click", async () => {
  const code = find("curl");
  try {
    await navigator.clipboard.writeText(code.textContent);
    status.textContent = "Copied.";
  } catch {
    getSelection().selectAllChildren(code);
    status.textContent = "Selected: copy it with the keyboard.";
  }
});
find("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key = find("key").value;
  sessionStorage.setItem("key", key);
  find("key-form").hidden = true;
  describe();
});
describe();
