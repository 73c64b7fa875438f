"""PDF files, made by hand."""

from collections.abc import Sequence


def pdf_of(pages: Sequence[Sequence[str]], title: str = "", outline: Sequence[str] = ()) -> bytes:
    """A file whose pages have these lines; the outline's entries are of the first pages."""
    objects: list[bytes] = []
    count = len(pages)
    first_page, first_entry = 4, 4 + 2 * count
    catalog = "<< /Type /Catalog /Pages 2 0 R"
    if outline:
        catalog += f" /Outlines {first_entry} 0 R"
    objects.append(f"{catalog} >>".encode())
    kids = " ".join(f"{first_page + 2 * number} 0 R" for number in range(count))
    objects.append(f"<< /Type /Pages /Kids [{kids}] /Count {count} >>".encode())
    objects.append(b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>")
    for number, lines in enumerate(pages):
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Resources"
            b" << /Font << /F1 3 0 R >> >> /Contents %d 0 R >>" % (first_page + 2 * number + 1)
        )
        shown = " ".join(f"({_escaped(line)}) Tj T*" for line in lines)
        drawn = f"BT /F1 12 Tf 14 TL 72 720 Td {shown} ET".encode("latin-1")
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(drawn), drawn))
    if outline:
        last = first_entry + len(outline)
        objects.append(
            f"<< /Type /Outlines /First {first_entry + 1} 0 R /Last {last} 0 R"
            f" /Count {len(outline)} >>".encode()
        )
        for number, name in enumerate(outline):
            here = first_entry + 1 + number
            after = f" /Next {here + 1} 0 R" if here < last else ""
            before = f" /Prev {here - 1} 0 R" if number else ""
            objects.append(
                f"<< /Title ({_escaped(name)}) /Parent {first_entry} 0 R{after}{before}"
                f" /Dest [{first_page + 2 * number} 0 R /Fit] >>".encode()
            )
    objects.append(f"<< /Title ({_escaped(title)}) >>".encode())
    return _file(objects)


def _file(objects: Sequence[bytes]) -> bytes:
    data = b"%PDF-1.4\n"
    places = []
    for number, body in enumerate(objects, 1):
        places.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    return data + (
        b"xref\n0 %d\n0000000000 65535 f \n%strailer\n<< /Size %d /Root 1 0 R /Info %d 0 R >>\n"
        b"startxref\n%d\n%%%%EOF\n"
        % (len(objects) + 1, table, len(objects) + 1, len(objects), len(data))
    )


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("(", "\\(").replace(")", "\\)")
