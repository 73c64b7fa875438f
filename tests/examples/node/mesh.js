// Calls Weft by its one target, xds:///weft, from Node, with nothing but the contracts under
// proto/: gRPC's own xDS client finds who serves a method, balances, and goes elsewhere when one
// fails.
//
//   node mesh.js PROTO_FOLDER GOOGLE_APIS_FOLDER PARENT CALLS_PER_SECOND
//
// GRPC_XDS_BOOTSTRAP or GRPC_XDS_BOOTSTRAP_CONFIG says where Weft's control plane is; WEFT_API_KEY
// holds the key, where one is asked for. Lists the tools of PARENT, such as tenants/default, until
// SIGTERM. Each line on stdout is a JSON document: who answered how often since the last one, what
// failed, and the slowest answer.
'use strict';

const grpc = require('@grpc/grpc-js');
const xds = require('@grpc/grpc-js-xds');
const protoLoader = require('@grpc/proto-loader');

const DEADLINE_MS = 5000;
const LAP_MS = 200;
const TICK_MS = 10;
// gRPC tries no call again of whose answer a part has come. With HTTP/2's own 64 KiB for all answers of
// a connection, those of a few dozen calls at once stop half-way, and end so where their server dies.
const WINDOW_BYTES = 4 * 1024 * 1024;

function newLap() {
  return { answered: {}, failed: {}, slowest_ms: 0 };
}

class Caller {
  constructor(stub, parent, key) {
    this.stub = stub;
    this.parent = parent;
    this.key = key;
    this.underWay = 0;
    this.lap = newLap();
  }

  // Lists the tools once, and notes which server's address it was answered from.
  call() {
    const sent = new grpc.Metadata();
    if (this.key) {
      sent.set('authorization', `Bearer ${this.key}`);
    }
    const began = Date.now();
    this.underWay += 1;
    const call = this.stub.ListTools({ parent: this.parent }, sent, { deadline: began + DEADLINE_MS }, (error) => {
      this.underWay -= 1;
      if (error) {
        const what = `${grpc.status[error.code]}: ${error.details}`;
        this.lap.failed[what] = (this.lap.failed[what] || 0) + 1;
        return;
      }
      const server = call.getPeer();
      this.lap.answered[server] = (this.lap.answered[server] || 0) + 1;
      this.lap.slowest_ms = Math.max(this.lap.slowest_ms, Date.now() - began);
    });
  }

  print() {
    process.stdout.write(`${JSON.stringify(this.lap)}\n`);
    this.lap = newLap();
  }
}

function main([protos, googleApis, parent, perSecond]) {
  xds.register();
  const options = { includeDirs: [protos, googleApis], keepCase: true, longs: String, enums: String, oneofs: true };
  const loaded = protoLoader.loadSync(['weft/tools/v1/tool_service.proto'], options);
  const { ToolService } = grpc.loadPackageDefinition(loaded).weft.tools.v1;
  // The control plane says which clusters are to be reached by mutual TLS; others are in plain text.
  const credentials = new xds.XdsChannelCredentials(grpc.credentials.createInsecure());
  const stub = new ToolService('xds:///weft', credentials, { 'grpc-node.flow_control_window': WINDOW_BYTES });
  const caller = new Caller(stub, parent, process.env.WEFT_API_KEY);

  const began = Date.now();
  let made = 0;
  const calls = setInterval(() => {
    for (; made < ((Date.now() - began) * perSecond) / 1000; made += 1) {
      caller.call();
    }
  }, TICK_MS);
  const laps = setInterval(() => caller.print(), LAP_MS);
  process.on('SIGTERM', () => {
    clearInterval(calls);
    clearInterval(laps);
    setInterval(() => {
      if (caller.underWay === 0) {
        caller.print();
        process.exit(0);
      }
    }, TICK_MS);
  });
}

main(process.argv.slice(2));
