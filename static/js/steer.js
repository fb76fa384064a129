// Steering a picture that is being painted: its dials and the weights of its styles take new values.

import { send } from "./api.js";
import { complain } from "./messages.js";

// Takes over what was set, but not sent yet, from a form that the lab has written anew.
export function carryOver(before, after) {
  const fields = [...before.querySelectorAll("input")];
  for (const [number, field] of [...after.querySelectorAll("input")].entries()) {
    const known = fields[number];
    if (known && known.value !== (known.dataset.now ?? known.defaultValue)) field.value = known.value;
  }
}

export function listenToSteering(form, host) {
  const dials = [...form.querySelectorAll("[data-dial]")];
  const weights = [...form.querySelectorAll("[data-weight]")];
  const button = form.querySelector("button");

  function turned() {
    return dials.filter((dial) => dial.value !== dial.dataset.now);
  }

  function weighed() {
    return weights.some((weight) => weight.value !== weight.defaultValue);
  }

  function show() {
    for (const dial of dials) {
      const now = Number(Number(dial.dataset.now).toPrecision(3));
      dial.parentElement.querySelector("[data-reading]").textContent = dial.value === dial.dataset.now ? `${now}` : `${now} → ${dial.value}`;
    }
    button.disabled = !turned().length && !weighed();
  }

  form.addEventListener("input", show);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    button.disabled = true;
    const body = { attempt: Number(host.dataset.attempt), dials: Object.fromEntries(turned().map((dial) => [dial.dataset.dial, Number(dial.value)])) };
    if (weighed()) body.weights = weights.map((weight) => Number(weight.value));
    try {
      await send("POST", `/api/jobs/${host.dataset.job}/steer`, body);
      for (const dial of dials) dial.dataset.now = dial.value;
      for (const weight of weights) weight.defaultValue = weight.value;
    } catch (error) {
      complain(error);
    }
    show();
  });
  for (const dial of dials) {
    const turnedTo = dial.value;
    dial.value = dial.dataset.now;
    dial.dataset.now = dial.value; // as the browser rounds it
    dial.value = turnedTo;
  }
  form.hidden = false;
  show();
}
