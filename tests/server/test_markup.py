"""Text that goes into a page is escaped, unless it was made there."""

from blindai.server.markup import Html, fill, join


def test_values_are_escaped_once():
    """What comes from outside is escaped; what `fill` made is not escaped again."""
    inner = fill("<b title='{t}'>{x}</b>", t="'\"", x="<&>{x}")
    assert inner == "<b title='&#x27;&quot;'>&lt;&amp;&gt;{x}</b>"
    assert fill("<p>{inner}</p>", inner=inner) == f"<p>{inner}</p>"
    assert join([inner, Html("<i></i>")], "<") == f"{inner}&lt;<i></i>"
