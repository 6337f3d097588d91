// The pages work without this; it sends a choice at once, and shows how far a press is while it goes on.
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
