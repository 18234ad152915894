"""The page for people: drop, paste or choose a picture, see its classes as bars. One file, nothing from elsewhere."""

import base64
import hashlib
import html as markup
from collections.abc import Iterable, Mapping
from typing import Any

_STYLE = """
:root { --ink: #1b1f24; --soft: #57606a; --paper: #ffffff; --edge: #8c959f; --track: #e7ebef; --bar: #0072b2;
  --warn: #a40e26; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8ecf0; --soft: #a3adb8; --paper: #14181d; --edge: #6b7681;
  --track: #2a313a; --bar: #56b4e9; --warn: #ff9a9a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem; max-width: 56rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
header { display: flex; flex-wrap: wrap; gap: .5rem 2rem; align-items: baseline; justify-content: space-between; }
h1 { font-size: 1.4rem; margin: 0; }
select { font: inherit; color: inherit; background: var(--paper); padding: .3rem .5rem; border: 1px solid var(--edge);
  border-radius: .4rem; max-width: 100%; }
main { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); gap: 1.5rem 2rem;
  margin-top: 1.25rem; align-items: start; }
#drop { position: relative; display: grid; place-items: center; min-height: 20rem; padding: 1rem; text-align: center;
  border: 2px dashed var(--edge); border-radius: .75rem; cursor: pointer; overflow: hidden; }
#drop:hover, #drop.over { border-color: var(--bar); background: color-mix(in srgb, var(--bar) 8%, transparent); }
#drop:focus-within { outline: 3px solid var(--bar); outline-offset: 3px; }
#file { position: absolute; inset: 0; opacity: 0; cursor: pointer; }
#frame { position: relative; line-height: 0; }
#frame img { max-width: 100%; max-height: 20rem; min-width: 14rem; border-radius: .25rem; }
#frame img.small { image-rendering: pixelated; }
#box { position: absolute; border: 3px solid var(--bar); box-shadow: 0 0 0 1px #fff; }
#hint { color: var(--soft); }
#hint strong { color: var(--ink); }
#answer h2 { font-size: 1.1rem; margin: 0 0 .75rem; overflow-wrap: anywhere; }
ol { list-style: none; margin: 0; padding: 0; }
li { margin-bottom: .8rem; }
.row { display: flex; justify-content: space-between; gap: 1rem; }
.row span:first-child { overflow-wrap: anywhere; }
.row span:last-child { font-variant-numeric: tabular-nums; white-space: nowrap; }
li:first-child .row { font-weight: 650; }
.track { height: .8rem; margin-top: .2rem; background: var(--track); border-radius: .4rem; overflow: hidden; }
.track div { height: 100%; min-width: 2px; background: var(--bar); border-radius: .4rem; }
#error { color: var(--warn); font-weight: 600; overflow-wrap: anywhere; margin: 0; }
#about { color: var(--soft); font-size: .9rem; margin: .75rem 0 0; }
[hidden] { display: none !important; }
@media (prefers-reduced-motion: no-preference) { .track div { transition: width .25s; } }
"""

_SCRIPT = """
"use strict";
const at = (id) => document.getElementById(id);
const model = at("model"), drop = at("drop"), file = at("file"), frame = at("frame"), picture = at("picture");
let shown = null, turn = 0, url = "";

function bar(name, share) {
  const item = document.createElement("li"), row = document.createElement("div");
  const label = document.createElement("span"), number = document.createElement("span");
  const track = document.createElement("div"), filled = document.createElement("div");
  label.textContent = name;
  number.textContent = (100 * share).toFixed(1) + " %";
  row.className = "row";
  row.append(label, number);
  track.className = "track";
  track.setAttribute("aria-hidden", "true");
  filled.style.width = 100 * Math.min(1, Math.max(0, share)) + "%";
  track.append(filled);
  item.append(row, track);
  return item;
}

function value(number, index) {
  const item = document.createElement("li");
  item.textContent = "output " + index + ": " + Number(number).toPrecision(5);
  return item;
}

function show(found, outputs) {
  const list = at("list");
  list.replaceChildren();
  at("box").hidden = true;
  if (found.classes && found.scores) {
    at("title").textContent = found.classes[0];
    found.classes.forEach((name, i) => list.append(bar(name, found.scores[i])));
    return;
  }
  const numbers = Array.isArray(found) ? found : Object.values(found)[0];
  at("title").textContent = outputs.includes("boxes") ? "Box: x, y, width, height" : "Values";
  [numbers].flat(Infinity).forEach((number, i) => list.append(value(number, i)));
  if (outputs.includes("boxes") && numbers.length === 4) {
    const place = at("box").style;
    [place.left, place.top, place.width, place.height] = numbers.map((number) => 100 * number + "%");
    at("box").hidden = false;
  }
}

function fail(text) {
  at("error").textContent = text;
  at("error").hidden = false;
  at("title").textContent = "No answer";
  at("list").replaceChildren();
  at("about").textContent = "";
}

function read(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(new Error("the file cannot be read"));
    reader.readAsDataURL(blob);
  });
}

async function ask(blob) {
  const mine = ++turn, chosen = model.selectedOptions[0];
  if (!blob || !chosen) return;
  shown = blob;
  URL.revokeObjectURL(url);
  url = URL.createObjectURL(blob);
  picture.src = url;
  picture.alt = "the picture: " + (blob.name || "from the clipboard");
  frame.hidden = false;
  at("hint").hidden = true;
  at("box").hidden = true;
  at("error").hidden = true;
  at("title").textContent = "…";
  at("answer").setAttribute("aria-busy", "true");
  try {
    if (chosen.dataset.pictures !== "yes") throw new Error("this model takes numbers, not pictures: use its REST path");
    const started = performance.now();
    const response = await fetch("/v1/models/" + encodeURIComponent(chosen.value) + ":predict", {
      method: "POST", headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ instances: [{ b64: await read(blob) }] }),
    });
    const body = await response.json();
    if (mine !== turn) return;
    if (!response.ok) throw new Error(body.error || "the server answered " + response.status);
    show(body.predictions[0], chosen.dataset.outputs.split(" "));
    at("about").textContent = (blob.name || "picture") + ", answered in " +
      Math.round(performance.now() - started) + " ms. Drop the next one anywhere.";
  } catch (error) {
    if (mine === turn) fail(error.message);
  } finally {
    if (mine === turn) at("answer").setAttribute("aria-busy", "false");
  }
}

picture.addEventListener("load", () => picture.classList.toggle("small", picture.naturalWidth < 100));
picture.addEventListener("error", () => { frame.hidden = true; at("hint").hidden = false; });
file.addEventListener("change", () => { ask(file.files[0]); file.value = ""; });
model.addEventListener("change", () => ask(shown));
for (const name of ["dragenter", "dragover"]) {
  document.addEventListener(name, (event) => { event.preventDefault(); drop.classList.add("over"); });
}
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) drop.classList.remove("over"); });
document.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  ask(event.dataTransfer.files[0]);
});
document.addEventListener("paste", (event) => ask(event.clipboardData.files[0]));
"""

_BODY = """
<header>
<h1>dlkit serve</h1>
<p><label for="model">Model</label> <select id="model">{options}</select></p>
</header>
<main>
<div id="drop">
<div id="hint"><p><strong>Drop a picture here</strong></p><p>click to choose one, or paste it</p>
<p>JPEG, PNG, BMP, GIF or WebP. It goes to this server and nowhere else.</p></div>
<div id="frame" hidden><img id="picture" alt=""><div id="box" hidden></div></div>
<input id="file" type="file" accept="image/*" aria-label="Choose a picture">
</div>
<section id="answer" aria-live="polite" aria-busy="false">
<h2 id="title">The classes appear here</h2>
<p id="error" role="alert" hidden></p>
<ol id="list"></ol>
<p id="about"></p>
</section>
</main>
"""


def _hash(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


POLICY = (
    f"default-src 'none'; script-src {_hash(_SCRIPT)}; style-src {_hash(_STYLE)}; img-src blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def html(models: Iterable[Mapping[str, Any]]) -> bytes:
    """Returns the page for these models; names are data, never markup.

    >>> b"&lt;b&gt;" in html([{"name": "<b>", "version": "1", "pictures": True, "outputs": ["classes"]}])
    True
    """
    options = "".join(
        f'<option value="{markup.escape(model["name"])}" data-pictures="{"yes" if model["pictures"] else "no"}" '
        f'data-outputs="{markup.escape(" ".join(model["outputs"]))}">'
        f"{markup.escape(model['name'])}, version {markup.escape(model['version'])}</option>"
        for model in models
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>dlkit serve</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<style>{_STYLE}</style></head><body>{_BODY.replace('{options}', options)}<script>{_SCRIPT}</script>"
        "</body></html>"
    ).encode()
