//! Names from files as people may see them: on a terminal, on a page. A name can hold anything, also what moves a cursor, closes
//! a table or runs a script; whatever prints or writes Markdown passes it through here.

/// Text for a terminal: control characters and those that reorder text become escapes such as `\u{1b}`; line breaks and tabs
/// stay.
pub fn shown(text: &str) -> String {
    let stays = |c: char| matches!(c, '\n' | '\t') || !is_hidden(c);
    text.chars().map(|c| if stays(c) { c.to_string() } else { c.escape_unicode().to_string() }).collect()
}

/// Text of one line for a terminal: line breaks and tabs become escapes, too.
pub fn shown_on_a_line(text: &str) -> String {
    shown(&text.replace('\n', "\\n").replace('\t', "\\t"))
}

/// Text for a line of Markdown, which is shown as it is: no HTML, no link, no end of a cell.
pub(crate) fn in_markdown(text: &str) -> String {
    let line = shown(&text.replace(['\n', '\t'], " "));
    let html = line.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    html.replace('|', "\\|").replace("](", "]\\(")
}

/// JSON with the control characters escaped that JSON itself lets through.
pub fn shown_json(json: &str) -> String {
    let escaped = |c: char| if is_hidden(c) && c != '\n' { format!("\\u{:04x}", u32::from(c)) } else { c.to_string() };
    json.chars().map(escaped).collect()
}

/// Control characters (C0, DEL, C1), separators of lines, and marks that change the direction of text.
fn is_hidden(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_moves_a_cursor_is_escaped() {
        assert_eq!(shown("a\u{1b}[2Jb\u{9b}1m\r\u{202e}c\nd"), "a\\u{1b}[2Jb\\u{9b}1m\\u{d}\\u{202e}c\nd");
        assert_eq!(shown_on_a_line("a\nhint: b"), "a\\nhint: b");
        assert_eq!(shown("blocks.0.mlp.down é 重"), "blocks.0.mlp.down é 重");
    }

    #[test]
    fn names_stay_in_their_cells() {
        assert_eq!(in_markdown("a|b\n<script>x</script>[c](d)"), "a\\|b &lt;script&gt;x&lt;/script&gt;[c]\\(d)");
    }

    #[test]
    fn json_stays_what_it_was() {
        let name = "a\u{9b}b\u{7f}\u{202e}\u{1b}";
        let json = shown_json(&serde_json::to_string_pretty(&[name]).expect("text is JSON"));
        assert!(!json.chars().any(|c| is_hidden(c) && c != '\n'), "{json}");
        assert_eq!(serde_json::from_str::<Vec<String>>(&json).expect("it is JSON"), [name]);
    }
}
