"""A conversation kept in memory: what a session said is here for as long as its worker lives."""

conversations = {}


def handler(input_data):
    session_id = input_data.get("session_id", "default")
    history = conversations.setdefault(session_id, [])
    history.append(input_data.get("query", ""))
    return {"response": f"You said: {history[-1]}", "turn": len(history)}
