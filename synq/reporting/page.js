// Light or dark: the system's, until the button says otherwise.
const theme = find("#theme");
const wanted = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (document.documentElement.dataset.theme ?? (wanted.matches ? "dark" : "light")) === "dark";
const tellTheme = () => theme.setAttribute("aria-pressed", String(isDark()));
// A file of its own may have no storage; then the choice lasts as long as the page.
const stored = (read) => { try { return read(); } catch { return null; } };
const kept = stored(() => localStorage.getItem("synq-theme"));
if (kept) document.documentElement.dataset.theme = kept;
tellTheme();
wanted.addEventListener("change", tellTheme);
theme.addEventListener("click", () => {
  const next = isDark() ? "light" : "dark";
  document.documentElement.dataset.theme = next;
  stored(() => localStorage.setItem("synq-theme", next));
  tellTheme();
});

// The field above the table filters its rows by words.
const body = find("#runs tbody");
find("#filter")?.addEventListener("input", (event) => {
  const words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
  const rows = [...body.rows];
  for (const row of rows) {
    const text = all("th, td", row).map((cell) => cell.textContent).join(" ").toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
  }
  find("#shown").textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} runs`;
});

// Two runs side by side.
const data = JSON.parse(find("#data").textContent);
const [left, right, differing] = ["#left", "#right", "#differing"].map((query) => find(query));
const cell = (tag, text, name) => {
  const element = document.createElement(tag);
  element.textContent = text;
  if (name) element.className = name;
  if (tag === "th") element.scope = "row";
  return element;
};
const compare = () => {
  const [first, second] = [data[left.value], data[right.value]];
  const labels = [...new Set([...Object.keys(first), ...Object.keys(second)])];
  const rows = [];
  for (const label of labels) {
    const [a, b] = [first[label] ?? "", second[label] ?? ""];
    if (a === b && differing.checked) continue;
    const row = document.createElement("tr");
    const name = a === b ? "" : "differs";
    row.append(cell("th", label), cell("td", a, name), cell("td", b, name));
    rows.push(row);
  }
  find("#compared tbody").replaceChildren(...rows);
};
if (left) {
  [left, right, differing].forEach((input) => input.addEventListener("change", () => {
    compare();
    history.replaceState(null, "", `#compare=${left.value},${right.value}`);
  }));
}

// Links into the page: to a run, which opens, and to a comparison.
const follow = () => {
  const hash = decodeURIComponent(location.hash.slice(1));
  if (hash.startsWith("compare=") && left) {
    const [first, second] = hash.slice("compare=".length).split(",");
    if (first in data) left.value = first;
    if (second in data) right.value = second;
    compare();
    find("#compare").scrollIntoView();
    return;
  }
  const place = hash && document.getElementById(hash);
  if (place instanceof HTMLDetailsElement) {
    place.open = true;
    place.scrollIntoView();
  }
};
if (left) compare();
addEventListener("hashchange", follow);
follow();

// The clipboard of the browser is not there for every file; then a selection is copied as of old.
const copyOf = async (text, code) => {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    getSelection().selectAllChildren(code);
    return document.execCommand("copy");
  }
};
all(".copy").forEach((button) => button.addEventListener("click", async () => {
  const code = find("code", button.parentElement);
  const done = await copyOf(code.textContent, code);
  button.textContent = done ? "Copied" : "Selected: press Ctrl+C";
  setTimeout(() => { button.textContent = "Copy"; }, 2000);
}));
