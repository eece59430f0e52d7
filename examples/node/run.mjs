// Applies a small agent, runs it and follows its events to the end: node run.mjs ["text"]
import { randomUUID } from "node:crypto";

import { connect } from "./holdfast.mjs";

const { agents, runs, call, stream, close } = connect();

await call(agents, "ApplyAgent", {
  spec: {
    name: "node-hello",
    instructions: "Greet whoever writes.",
    model: { provider: "scripted", script: { turns: [{ text: "Hello from Holdfast. You said: {{input}}" }] } },
  },
});

// The request_id makes the call safe to repeat: the same id is the same run.
const text = process.argv[2] ?? "hello from Node";
const { run } = await call(runs, "StartRun", { agent: "node-hello", text, request_id: randomUUID() });
console.log(`run ${run.run_id}`);

// A client that goes away changes nothing; it comes back with the last seq it has seen.
let afterSeq = 0;
let ended = false;
while (!ended) {
  try {
    for await (const { kind, event, delta } of stream(runs, "WatchRun", { run_id: run.run_id, after_seq: afterSeq })) {
      if (kind === "delta") process.stdout.write(delta.text);
      if (kind !== "event") continue;
      afterSeq = event.seq;
      console.log(`\n#${event.seq} ${event.changes.map((change) => change.kind).join(", ")}`);
    }
    ended = true;
  } catch (error) {
    if (error.code !== 14) throw error; // 14 is UNAVAILABLE: attach again
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
}

const { run: end } = await call(runs, "GetRun", { run_id: run.run_id });
console.log(`${end.state}: ${end.output?.parts.map((part) => part.text).join("")}`);
close();
process.exitCode = end.state === "RUN_STATE_SUCCEEDED" ? 0 : 1;
