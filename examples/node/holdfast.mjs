// Loads Holdfast's contracts from the .proto files and makes clients that send the API key: all that a Node program
// needs. HOLDFAST_ADDRESS is the executor's address, HOLDFAST_API_KEY the key.
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

const protos = fileURLToPath(new URL("../../proto", import.meta.url));

function filesOf(service) {
  const folder = join("holdfast", "api", service, "v1");
  return readdirSync(join(protos, folder)).map((name) => join(folder, name));
}

const definition = protoLoader.loadSync([...filesOf("executor"), ...filesOf("auth"), ...filesOf("trace")], {
  includeDirs: [protos],
  keepCase: true,
  longs: Number,
  enums: String,
  oneofs: true,
});
const api = grpc.loadPackageDefinition(definition).holdfast.api;

// Only UNAVAILABLE is worth the same call again; every mutating call takes a request_id, which makes that safe.
const serviceConfig = JSON.stringify({
  methodConfig: [
    {
      name: [{}],
      retryPolicy: {
        maxAttempts: 5,
        initialBackoff: "0.1s",
        maxBackoff: "2s",
        backoffMultiplier: 2,
        retryableStatusCodes: ["UNAVAILABLE"],
      },
    },
  ],
});

export function connect(address = process.env.HOLDFAST_ADDRESS ?? "127.0.0.1:7400", key = process.env.HOLDFAST_API_KEY) {
  if (!key) throw new Error("set HOLDFAST_API_KEY to a key of your workspace (holdfast keys create)");
  const metadata = new grpc.Metadata();
  metadata.set("authorization", `Bearer ${key}`);
  const clientOf = (Service) => new Service(address, grpc.credentials.createInsecure(), { "grpc.service_config": serviceConfig });
  const services = api.executor.v1;
  const runs = clientOf(services.RunService);
  const agents = clientOf(services.AgentService);
  const workers = clientOf(services.ToolWorkerService);
  return {
    metadata,
    runs,
    agents,
    workers,
    // One unary call as a promise, with a deadline: `await call(runs, "GetRun", { run_id })`.
    call: (client, method, request, seconds = 10) =>
      new Promise((resolve, reject) => {
        const deadline = Date.now() + seconds * 1000;
        client[method](request, metadata, { deadline }, (error, response) => (error ? reject(error) : resolve(response)));
      }),
    // A server stream with the key: an async iterable, because grpc-js streams are.
    stream: (client, method, request) => client[method](request, metadata),
    close: () => [runs, agents, workers].forEach((client) => client.close()),
  };
}

// The events of a run after `afterSeq`, then those that follow, to the end. A client that goes away changes nothing: when
// the connection breaks this attaches again behind the last event, so that none is missing and none comes twice.
export async function* follow({ runs, stream }, runId, afterSeq = 0) {
  for (;;) {
    try {
      for await (const { kind, event, delta } of stream(runs, "WatchRun", { run_id: runId, after_seq: afterSeq })) {
        if (kind === "delta") yield { delta };
        if (kind !== "event") continue; // a beat of an idle stream
        afterSeq = event.seq;
        yield { event };
        if (event.changes.some((change) => ENDED.has(change.run_state_changed?.state))) return;
      }
      // The stream of an executor that drains ends before its run does.
    } catch (error) {
      if (error.code !== grpc.status.UNAVAILABLE) throw error;
    }
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
}

const ENDED = new Set([
  "RUN_STATE_SUCCEEDED",
  "RUN_STATE_FAILED",
  "RUN_STATE_CANCELLED",
  "RUN_STATE_EXPIRED",
  "RUN_STATE_BUDGET_EXCEEDED",
]);

// The stable reason of a refused call (google.rpc.ErrorInfo), or undefined: docs/errors.md lists them.
export function reasonOf(error) {
  const [details] = error.metadata?.get("grpc-status-details-bin") ?? [];
  return details ? /[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+/.exec(details.toString("latin1"))?.[0] : undefined;
}
