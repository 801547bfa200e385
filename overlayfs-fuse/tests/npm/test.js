// A server and its client, over a socket in the directory of the test.
const assert = require("node:assert");
const http = require("node:http");
const path = require("node:path");
const express = require("express");

describe("the installed packages", () => {
    it("answer a request", (done) => {
        const app = express();
        app.use(express.static(__dirname));
        const socketPath = path.join(__dirname, "socket");
        const server = app.listen(socketPath, () => {
            http.get({ socketPath, path: "/package.json" }, (response) => {
                let text = "";
                response.on("data", (data) => (text += data));
                response.on("end", () => {
                    assert.strictEqual(response.statusCode, 200);
                    assert.strictEqual(JSON.parse(text).name, "small");
                    server.close(done);
                });
            });
        });
    });
});
