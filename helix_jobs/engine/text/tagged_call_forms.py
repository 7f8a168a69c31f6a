"""The forms of calls whose arguments stand one by one, in tags.

Sources: the chat templates of the models named below.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from helix_jobs.engine.text.argument_tags import ArgumentTags, read_tagged
from helix_jobs.engine.text.calls import CallForm


def _tagged(
    name: str,
    seen: str,
    tags: ArgumentTags,
    *,
    before: str,
    between: str,
    after: str,
    separator: str,
    opens: str = "",
    closes: str = "",
) -> CallForm:
    """A form with these tags; see ``CallForm``."""
    return CallForm(
        name=name,
        seen=seen,
        read=partial(read_tagged, tags=tags),
        tags=tags,
        opens=opens,
        before=before,
        between=between,
        after=after,
        separator=separator,
        closes=closes,
    )


_FUNCTION: Final = r"<function=([^<>\s]+)>\s*"
TAGGED_FORMS: Final = (
    # Qwen3-Coder, Qwen 3.5, Nemotron 3 Nano, Step 3.5.
    _tagged(
        "xml",
        r"<tool_call>\s*<function=NAME>",
        ArgumentTags(
            call=r"<tool_call>\s*" + _FUNCTION,
            call_begin="<tool_call>",
            call_ends=("</function>", "</tool_call>"),
            before_name="<parameter=",
            after_name=">\n",
            edge="\n",
            end="</parameter>",
            behind="\n",
        ),
        before="<tool_call>\n<function=",
        between=">\n",
        after="</function>\n</tool_call>",
        separator="\n",
    ),
    # Seed-OSS.
    _tagged(
        "seed",
        r"<seed:tool_call>\s*<function=NAME>",
        ArgumentTags(
            call=r"<seed:tool_call>\s*" + _FUNCTION,
            call_begin="<seed:tool_call>",
            call_ends=("</function>", "</seed:tool_call>"),
            before_name="<parameter=",
            after_name=">",
            end="</parameter>",
            behind="\n",
        ),
        before="<seed:tool_call>\n<function=",
        between=">\n",
        after="</function>\n</seed:tool_call>",
        separator="\n",
    ),
    # GLM-4.5 and 4.6.
    _tagged(
        "glm",
        r"<tool_call>NAME\n\s*<arg_key>",
        ArgumentTags(
            call=r"<tool_call>\s*([^\s<>{}]+)\s*",
            call_begin="<tool_call>",
            call_ends=("</tool_call>",),
            before_name="<arg_key>",
            after_name="</arg_key>\n<arg_value>",
            end="</arg_value>",
            behind="\n",
        ),
        before="<tool_call>",
        between="\n",
        after="</tool_call>",
        separator="\n",
    ),
    # GLM-4.7 and later.
    _tagged(
        "glm_dense",
        r"<tool_call>NAME<arg_key>",
        ArgumentTags(
            call=r"<tool_call>\s*([^\s<>{}]+)\s*",
            call_begin="<tool_call>",
            call_ends=("</tool_call>",),
            before_name="<arg_key>",
            after_name="</arg_key><arg_value>",
            end="</arg_value>",
        ),
        before="<tool_call>",
        between="",
        after="</tool_call>",
        separator="",
    ),
    # MiniMax M2.
    _tagged(
        "minimax",
        r'<minimax:tool_call>\s*<invoke name="NAME">',
        ArgumentTags(
            call=r'<invoke name="([^<>"]+)">\s*',
            call_begin="<invoke name=",
            call_ends=("</invoke>",),
            around=r"</?minimax:tool_call>",
            before_name='<parameter name="',
            after_name='">',
            end="</parameter>",
            behind="\n",
        ),
        opens="<minimax:tool_call>\n",
        before='<invoke name="',
        between='">\n',
        after="</invoke>",
        separator="\n",
        closes="\n</minimax:tool_call>",
    ),
)
