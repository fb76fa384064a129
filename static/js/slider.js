// Before and after: a range input, which keyboards and screen readers know, and the picture itself as its handle.

export function listenToSlider(slider, initial) {
  const input = slider.querySelector("[data-split]");
  const slides = slider.querySelector(".slides");

  function show(value) {
    input.value = value;
    slider.style.setProperty("--split", `${input.value}%`);
    input.setAttribute("aria-valuetext", `${Math.round(input.value)} % before`);
  }

  function follow(event) {
    const box = slides.getBoundingClientRect();
    show((100 * (event.clientX - box.left)) / box.width);
  }

  input.addEventListener("input", () => show(input.value));
  slides.addEventListener("dragstart", (event) => event.preventDefault());
  slides.addEventListener("pointerdown", (event) => {
    slides.setPointerCapture(event.pointerId);
    follow(event);
  });
  slides.addEventListener("pointermove", (event) => {
    if (slides.hasPointerCapture(event.pointerId)) follow(event);
  });
  show(initial);
}
