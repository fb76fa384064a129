// A job's page: the slider, the chart, and a fresh page when the job has come to an end.

import { get, send } from "./api.js";
import { Chart } from "./chart.js";
import { complain } from "./messages.js";
import { refresh } from "./refresh.js";
import { listenToSlider } from "./slider.js";
import { carryOver, listenToSteering } from "./steer.js";
import { fill } from "./work.js";

export class JobPage {
  constructor(id) {
    this.id = id;
    this.furnish();
  }

  get host() {
    return document.querySelector("[data-item]");
  }

  furnish() {
    listenToSlider(this.host.querySelector("[data-slider]"), this.host.dataset.state === "done" ? 50 : 0);
    const button = this.host.querySelector("[data-delete]");
    button.hidden = false;
    button.addEventListener("click", () => this.remove());
    const steering = this.host.querySelector("[data-steer]");
    if (steering) listenToSteering(steering, this.host);
    this.draw().catch(complain);
  }

  async draw() {
    const detail = await get(`/api/jobs/${this.id}`);
    this.chart = new Chart(this.host.querySelector("[data-chart]"), detail.settings.loss);
    this.chart.mark(detail.job.steering);
    this.chart.set(detail.losses);
  }

  take(view) {
    const before = this.host.dataset.state;
    fill(this.host, view);
    this.chart?.mark(view.steering);
    if (view.loss !== null && view.state === "running") this.chart?.add(view);
    if (before !== view.state) this.renew();
  }

  async renew() {
    const stale = this.host.querySelector("[data-steer]");
    await refresh("[data-item]");
    const fresh = this.host.querySelector("[data-steer]");
    if (stale && fresh && stale !== fresh) carryOver(stale, fresh);
    this.furnish();
  }

  remove() {
    if (confirm("Delete this picture? It can't be brought back.")) {
      send("DELETE", `/api/jobs/${this.id}`).then(() => location.assign("/pictures"), complain);
    }
  }
}
