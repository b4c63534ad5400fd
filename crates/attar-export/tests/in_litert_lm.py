"""Generates from bundles in LiteRT-LM. stdin: a list of cases; stdout: what each gave, as JSON.

A case is {"model", "prompts": texts, "tokens": how many to generate} and perhaps "chat", a list of messages. The answer has what each prompt goes
on with as text, the tokens of the prompts, what the chat template makes of the dialogue, and what is answered.
"""

import litert_lm
from cases import answer


def run(case):
    backend = litert_lm.interfaces.CPU(thread_count=1)
    with litert_lm.Engine(case["model"], backend=backend, cache_dir=":nocache") as engine:
        said = []
        for prompt in case["prompts"]:
            with engine.create_session(max_output_tokens=case["tokens"]) as session:
                session.run_prefill([prompt])
                said.append(session.run_decode().texts[0])
        encoded = [engine.tokenize(prompt) for prompt in case["prompts"]]
        if "chat" not in case:
            return {"said": said, "encoded": encoded}
        with engine.create_conversation() as conversation:
            rendered = conversation.render_message_to_string(case["chat"][0])
            reply = conversation.send_message(case["chat"][0])
        return {"said": said, "encoded": encoded, "chat": rendered, "reply": reply}


answer(run)
