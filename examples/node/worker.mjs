// Serves one tool from Node: node worker.mjs. An agent calls it as a tool of kind `worker` named `word_count`.
//
// The rules of a worker: execute only after `go`, execute a call once, report until the report is answered.
import { randomUUID } from "node:crypto";

import { connect } from "./holdfast.mjs";

const { workers, metadata, call, close } = connect();
const workerId = randomUUID();
const tools = {
  word_count: {
    description: "Counts the words of a text.",
    effect: "EFFECT_CLASS_READ_ONLY",
    execute: ({ text }) => ({ words: text.split(/\s+/).filter(Boolean).length }),
  },
};

const offers = new Map(); // lease -> the offer
const running = new Set(); // leases being executed or reported

async function execute(offer) {
  let outcome;
  try {
    const result = await tools[offer.tool].execute(JSON.parse(offer.arguments_json));
    outcome = { result_json: JSON.stringify(result) };
  } catch (error) {
    outcome = { error: { message: String(error.message), is_retryable: false } };
  }
  for (;;) {
    try {
      await call(workers, "CompleteCall", { worker_id: workerId, lease: offer.lease, ...outcome });
      break;
    } catch (error) {
      if (error.code === 10) break; // ABORTED: no longer ours; the result is kept as late
      await new Promise((resolve) => setTimeout(resolve, 500));
    }
  }
  running.delete(offer.lease);
}

async function serve() {
  const stream = workers.Work(metadata);
  stream.write({
    hello: {
      worker_id: workerId,
      tools: Object.entries(tools).map(([name, { description, effect }]) => ({ name, description, effect })),
      slots: 4,
      running_leases: [...running],
      client: "holdfast-example-node",
    },
  });
  let heartbeat;
  try {
    for await (const { kind, welcome, offer, go, cancel } of stream) {
      if (kind === "welcome") {
        const { seconds, nanos } = welcome.heartbeat_interval;
        const beat = () => stream.write({ heartbeat: { running: Object.fromEntries([...running].map((lease) => [lease, ""])) } });
        heartbeat = setInterval(beat, Math.max(100, (seconds * 1000 + nanos / 1e6) / 2));
        console.log("serving", Object.keys(tools).join(", "));
      } else if (kind === "offer") {
        offers.set(offer.lease, offer);
        stream.write({ start: { lease: offer.lease } });
      } else if (kind === "go") {
        const accepted = offers.get(go.lease);
        offers.delete(go.lease);
        if (!accepted || running.has(go.lease)) continue;
        running.add(go.lease);
        void execute(accepted);
      } else if (kind === "cancel") {
        offers.delete(cancel.lease);
      }
    }
  } finally {
    clearInterval(heartbeat);
    offers.clear();
  }
}

process.on("SIGTERM", () => process.exit(0));
process.on("SIGINT", () => process.exit(0));
for (;;) {
  try {
    await serve();
  } catch (error) {
    if (![1, 14].includes(error.code)) {
      console.error(error.message);
      close();
      process.exit(1);
    }
  }
  await new Promise((resolve) => setTimeout(resolve, 500));
}
