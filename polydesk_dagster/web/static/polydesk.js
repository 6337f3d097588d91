// The pages work without this; it sends a choice at once, shows how far a press is while it goes on, and what a text
// would be while it is written.
document.documentElement.classList.add("scripted");
for (const choice of document.querySelectorAll("select[data-send]")) {
  choice.addEventListener("change", () => choice.form.requestSubmit());
}
const live = document.querySelector("[data-events]");
if (live) {
  const source = new EventSource(live.dataset.events);
  source.addEventListener("message", (event) => { live.innerHTML = event.data; });
  source.addEventListener("end", () => source.close());
}
for (const form of document.querySelectorAll("form[data-live]")) {
  const shown = document.getElementById(form.dataset.shows);
  let waiting = 0;
  let asked = 0;
  const look = async () => {
    const turn = ++asked;
    const body = new URLSearchParams(new FormData(form));
    const answer = await fetch(form.dataset.live, { method: "POST", body, headers: { "X-Part": "1" } });
    if (turn === asked) { shown.innerHTML = await answer.text(); }
  };
  form.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(look, 400); });
}
