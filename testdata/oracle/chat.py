"""Dialogues through chat templates by transformers: the oracle of attar's templates.

The templates use what published ones use: trimmed blocks, namespaces, slices, macros, string methods, `tojson`, `raise_exception`, special
tokens. Writes `chat.json`: for every template and dialogue the text, or null where the template refuses it.

    python chat.py    # made with transformers 5.5.4 and jinja2
"""

import json
from pathlib import Path

from transformers.utils.chat_template_utils import render_jinja_template

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}

TEMPLATES = {
    "marked turns": """{% for message in messages %}
    {% if loop.first and message['role'] != 'system' %}
<|start|>system
Be brief.<|end|>
    {% endif %}
<|start|>{{ message['role'] }}
{{ message['content'] | trim }}<|end|>
{% endfor %}
{% if add_generation_prompt %}<|start|>assistant
{% endif %}""",
    "system within the first turn": """{{ bos_token }}
{%- if messages[0].role == 'system' -%}
    {%- set system = messages[0].content.strip() + '\\n\\n' -%}
    {%- set rest = messages[1:] -%}
{%- else -%}
    {%- set system = '' -%}
    {%- set rest = messages -%}
{%- endif -%}
{%- for message in rest -%}
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception('roles must alternate') }}
    {%- endif -%}
    {%- if message.role == 'user' -%}
        {{ '[ASK] ' + (system if loop.first else '') + message.content.strip() + ' [/ASK]' }}
    {%- else -%}
        {{ ' ' ~ message.content.rstrip() ~ eos_token }}
    {%- endif -%}
{%- endfor -%}""",
    "marks, tools and documents": """{% if tools is not none %}TOOLS{% endif %}{{ documents is none }}
{% for message in messages %}
    {% if message.role == 'assistant' %}
A: {% generation %}
{{ message.content }}
    {% endgeneration %}
!
    {%- else %}
Q: {%- generation -%}  {{ message.content }}  {%- endgeneration %}

    {% endif %}
{% endfor %}""",
    "state and macros": """{% macro turn(role, text) %}<{{ role | upper }}>{{ text }}</{{ role | upper }}>{% endmacro %}
{% set state = namespace(count=0, last='') %}
{% for message in messages %}
  {%- set state.count = state.count + 1 %}
  {%- if message.name is defined %}({{ message.name }}) {% endif %}
  {{- turn(message.role, message.content.split('#')[0]) }}
  {%- set state.last = message.role %}
{% endfor %}
{{ state.count }} {{ state.last.startswith('assist') }} {{ messages | length }} {{ messages[-1] | tojson }}
{% for message in messages if message.role in ['user'] %}{{ message.content.replace('e', '3') }}{% if not loop.last %},{% endif %}{% endfor %}
{{ messages | map(attribute='role') | join('-') }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }}
{% for key, value in messages[0].items() %}{{ key }}={{ value }};{% endfor %}
{{ '%s' | format(messages[0].role) if false else messages[0].get('missing', 'none') }}""",
}

DIALOGUES = [
    [{"role": "user", "content": "  What is 2 + 2? # sums "}, {"role": "assistant", "content": "4.\n"}],
    [
        {"role": "system", "content": " You are é \"careful\" helper. "},
        {"role": "user", "content": "Hello there", "name": "Ann"},
        {"role": "assistant", "content": "Hi! <b>\n\n"},
        {"role": "user", "content": "Bye"},
    ],
    [{"role": "assistant", "content": "I begin."}, {"role": "user", "content": "Oh"}],
]


def render(template, dialogue):
    try:
        texts, _ = render_jinja_template(conversations=[dialogue], chat_template=template, add_generation_prompt=False, **TOKENS)
        return texts[0]
    except Exception as error:
        if "roles must alternate" not in str(error):
            raise
        return None


def main():
    cases = [
        {"template": template, "messages": dialogue, "text": render(template, dialogue)}
        for template in TEMPLATES.values()
        for dialogue in DIALOGUES
    ]
    written = {"tokens": TOKENS, "cases": cases}
    (Path(__file__).parent / "chat.json").write_text(json.dumps(written, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
