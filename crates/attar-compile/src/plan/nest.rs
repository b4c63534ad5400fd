//! The code of a body in a file: flat, with an explicit end of each loop, so that no file makes the reader recurse.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser::SerializeSeq};

use super::Statement;

/// How deep loops nest at most.
const DEPTH: usize = 16;

/// A statement, a loop without what is in it, or the end of a loop.
#[derive(Deserialize)]
#[expect(clippy::large_enum_variant, reason = "a body has a few dozen lines")]
enum Line {
    Do(Statement),
    End,
}

/// The same, borrowed.
#[derive(Serialize)]
enum LineRef<'s> {
    Do(&'s Statement),
    End,
}

pub(super) fn serialize<S: Serializer>(code: &[Statement], serializer: S) -> Result<S::Ok, S::Error> {
    fn count(code: &[Statement]) -> usize {
        code.iter().map(|statement| if let Statement::Loop { body, .. } = statement { 2 + count(body) } else { 1 }).sum()
    }
    fn write<S: SerializeSeq>(code: &[Statement], lines: &mut S) -> Result<(), S::Error> {
        for statement in code {
            lines.serialize_element(&LineRef::Do(statement))?;
            if let Statement::Loop { body, .. } = statement {
                write(body, lines)?;
                lines.serialize_element(&LineRef::End)?;
            }
        }
        Ok(())
    }
    let mut lines = serializer.serialize_seq(Some(count(code)))?;
    write(code, &mut lines)?;
    lines.end()
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Statement>, D::Error> {
    let lines: Vec<Line> = Vec::deserialize(deserializer)?;
    // Loops that are open, and what is in each so far; the outermost is no loop.
    let (mut open, mut code): (Vec<Statement>, Vec<Vec<Statement>>) = (Vec::new(), vec![Vec::new()]);
    for line in lines {
        match line {
            Line::Do(statement @ Statement::Loop { .. }) if open.len() < DEPTH => {
                open.push(statement);
                code.push(Vec::new());
            }
            Line::Do(Statement::Loop { .. }) => return Err(de::Error::custom("loops nest too deep")),
            Line::Do(statement) => code.last_mut().expect("the outermost stays").push(statement),
            Line::End => {
                let (Some(mut done), Some(inner)) = (open.pop(), code.pop()) else {
                    return Err(de::Error::custom("a loop ends that did not begin"));
                };
                if let Statement::Loop { body, .. } = &mut done {
                    *body = inner;
                }
                code.last_mut().expect("the outermost stays").push(done);
            }
        }
    }
    match (open.is_empty(), code.pop()) {
        (true, Some(code)) => Ok(code),
        _ => Err(de::Error::custom("a loop does not end")),
    }
}
