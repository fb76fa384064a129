// What every page does: follow its stream, let its buttons work; then what this page does.

import { send } from "./api.js";
import { Live } from "./events.js";
import { complain } from "./messages.js";
import { refresh } from "./refresh.js";
import { fill, listenToButtons } from "./work.js";

const { page, table, jobId } = document.body.dataset;

function showQueue(queue) {
  const line = document.querySelector("[data-queue]");
  line.dataset.paused = queue.paused ? "yes" : "no";
  line.querySelector("[data-queue-text]").textContent = queue.text;
  const button = line.querySelector("[data-queue-toggle]");
  button.hidden = false;
  button.textContent = queue.paused ? "Go on" : "Pause all";
}

function showNetwork(network) {
  const part = document.querySelector("[data-network]");
  part.dataset.network = network.name;
  document.querySelector("[data-network-name]").textContent = `${network.name} network`;
  part.querySelector("[data-network-title]").textContent = network.title;
  part.querySelector("[data-network-how]").hidden = !network.how;
  part.querySelector("[data-network-fetch]").disabled = network.fetching;
  part.querySelector("[data-network-status]").textContent = network.fetching ? "" : network.status;
  part.querySelector("[data-network-progress]").hidden = !network.fetching;
  const progress = part.querySelector("progress");
  progress.value = network.fraction;
  progress.title = network.status;
}

function listenToFrame() {
  document.querySelector("[data-queue-toggle]").addEventListener("click", () => {
    const paused = document.querySelector("[data-queue]").dataset.paused !== "yes";
    send("PUT", "/api/queue", { paused }).then(showQueue, complain);
  });
  document.querySelector("[data-network-fetch]").addEventListener("click", () => {
    send("POST", "/api/network").then(showNetwork, complain);
  });
}

const everywhere = { queue: showQueue, network: showNetwork };

const pages = {
  table() {
    const cell = (data) => {
      const host = document.querySelector(`[data-cell="${data.table}/${data.row}/${data.column}"]`);
      if (!host) return;
      if (data.job) fill(host, data.job);
      if (data.problem) host.querySelector("[data-slot=note]").textContent = data.problem;
    };
    new Live(`?table=${encodeURIComponent(table)}`, { ...everywhere, cell, table: () => refresh("[data-table-body]") });
    listenToButtons(() => {});
  },
  pictures() {
    const shown = (id) => document.querySelector(`[data-item="${id}"]`);
    const job = (view) => {
      if (shown(view.id)) fill(shown(view.id), view);
    };
    new Live("", { ...everywhere, job, removed: (gone) => shown(gone.id)?.remove() });
    listenToButtons(() => refresh("[data-table-body]"));
  },
  async job() {
    const { JobPage } = await import("./job.js");
    const own = new JobPage(jobId);
    new Live(`?job=${jobId}`, { ...everywhere, job: (view) => own.take(view), removed: () => location.assign("/pictures") });
    listenToButtons((view, button) => {
      if (button.dataset.action === "enlarge") location.assign(view.page);
    });
  },
  async new() {
    await import("./new.js");
    new Live("?table=-", everywhere);
  },
  async compare() {
    await import("./compare.js");
    new Live("?table=-", everywhere);
  },
};

listenToFrame();
await pages[page]?.();
document.body.dataset.ready = "yes"; // everything that can be clicked now works
