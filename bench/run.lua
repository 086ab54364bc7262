-- 32 sessions in turn, as 32 callers would send them.
local path, requests, turn = "/v1/agents/echo/run", {}, 0

function init(args)
  for session = 1, 32 do
    wrk.headers["Content-Type"] = "application/json"
    wrk.headers["X-Session-ID"] = "user-" .. session
    requests[session] = wrk.format("POST", path, nil, '{"input": {"query": "step 1"}}')
  end
end

function request()
  turn = turn % 32 + 1
  return requests[turn]
end
