// Applies a small agent, runs it and follows its events to the end: node run.mjs ["text"]
import { randomUUID } from "node:crypto";

import { connect, follow } from "./holdfast.mjs";

const holdfast = connect();
const { agents, runs, call } = holdfast;

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

for await (const { event } of follow(holdfast, run.run_id)) {
  if (event) console.log(`#${event.seq} ${event.changes.map((change) => change.kind).join(", ")}`);
}

const { run: end } = await call(runs, "GetRun", { run_id: run.run_id });
console.log(`${end.state}: ${end.output?.parts.map((part) => part.text).join("")}`);
holdfast.close();
process.exitCode = end.state === "RUN_STATE_SUCCEEDED" ? 0 : 1;
