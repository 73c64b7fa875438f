// Makes an agent and a session, runs a turn, and watches the session's events, with
// nothing but the contracts under proto/.
//
//   node client.js ADDRESS PROTO_FOLDER GOOGLE_APIS_FOLDER QUESTION
//
// WEFT_API_KEY in the environment holds the key; arguments are seen by everybody. GOOGLE_APIS_FOLDER holds google/api/annotations.proto and what it imports. Each line on
// stdout is a JSON document.
'use strict';

const grpc = require('@grpc/grpc-js');
const protoLoader = require('@grpc/proto-loader');

const DEADLINE_SECONDS = 60;
const CONTRACTS = [
  'weft/agents/v1/agent_service.proto',
  'weft/agents/v1/turn_service.proto',
  'weft/state/v1/session_service.proto',
  'weft/state/v1/state_service.proto',
];

function metadata() {
  const sent = new grpc.Metadata();
  sent.set('authorization', `Bearer ${process.env.WEFT_API_KEY}`);
  return sent;
}

function deadline() {
  return new Date(Date.now() + DEADLINE_SECONDS * 1000);
}

function load(folders) {
  const options = { includeDirs: folders, keepCase: true, longs: String, enums: String, oneofs: true };
  return grpc.loadPackageDefinition(protoLoader.loadSync(CONTRACTS, options)).weft;
}

function call(stub, method, request) {
  return new Promise((resolve, reject) => {
    stub[method](request, metadata(), { deadline: deadline() }, (error, response) => {
      if (error) {
        reject(error);
      } else {
        resolve(response);
      }
    });
  });
}

function print(document) {
  process.stdout.write(`${JSON.stringify(document)}\n`);
}

async function runTurn(turns, session, input) {
  const stream = turns.RunTurn({ session, input }, metadata(), { deadline: deadline() });
  for await (const { events } of stream) {
    for (const event of events) {
      print({ turn_event: event.event, offset: event.offset, [event.event]: event[event.event] });
    }
  }
}

async function watchSession(state, name, revision) {
  const stream = state.WatchEvents({ name, after_revision: 0 }, metadata(), { deadline: deadline() });
  try {
    for await (const { event } of stream) {
      print({ session_event: event.type, revision: event.revision });
      if (Number(event.revision) >= Number(revision)) {
        return;
      }
    }
  } finally {
    stream.on('error', () => {}); // cancelling ends it with CANCELLED, which was meant
    stream.cancel();
  }
}

async function main([address, protos, googleApis, question]) {
  const weft = load([protos, googleApis]);
  const credentials = grpc.credentials.createInsecure();
  const agents = new weft.agents.v1.AgentService(address, credentials);
  const turns = new weft.agents.v1.TurnService(address, credentials);
  const sessions = new weft.state.v1.SessionService(address, credentials);
  const state = new weft.state.v1.StateService(address, credentials);

  const parent = 'tenants/default';
  const spec = { instructions: 'Calculate.', tools: [{ tool: 'calculator' }] };
  const { agent } = await call(agents, 'CreateAgent', { parent, agent_id: 'from-node', spec });
  print({ agent: agent.name, revision: agent.revision });
  const { session } = await call(sessions, 'CreateSession', { parent: agent.name });
  print({ session: session.name });
  await runTurn(turns, session.name, question);
  const { session: after } = await call(sessions, 'GetSession', { name: session.name });
  await watchSession(state, session.name, after.revision);
  await call(agents, 'GetAgent', { name: `${parent}/agents/nobody` }).catch((error) => {
    print({ error: grpc.status[error.code] });
  });
}

main(process.argv.slice(2)).catch((error) => {
  process.stderr.write(`${error.message}\n`);
  process.exitCode = 1;
});
