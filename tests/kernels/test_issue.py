"""Issue slots: the listing is parsed, the usual path through a loop is found, and no kernel issues more than it did."""

import doctest
from pathlib import Path

import pytest

from kernels.__main__ import main
from kernels.workbench import issue

PAGE = Path(__file__).parents[2] / "docs" / "kernels" / "issue.md"

# A loop of two HMMA; a branch leaves out the mask (FSEL), another the copy (LDGSTS) of the tile that follows.
LOOP = """
\tFunction : kernel
        /*0000*/                   MOV R1, c[0x0][0x28] ;                 /* 0x0 */
        /*0010*/                   ISETP.GE.AND P0, PT, R0, R1, PT ;      /* 0x0 */
        /*0020*/              @P0 BRA 0x40 ;                              /* 0x0 */
        /*0030*/                   LDGSTS.E.BYPASS.128 [R2], [R4.64] ;    /* 0x0 */
        /*0040*/                   HMMA.16816.F32.BF16 R4, R8, R2, R4 ;   /* 0x0 */
        /*0050*/              @!P1 BRA 0x80 ;                             /* 0x0 */
        /*0060*/                   FSEL R4, R4, -INF , P2 ;               /* 0x0 */
        /*0070*/                   FSEL R5, R5, -INF , P2 ;               /* 0x0 */
        /*0080*/                   MUFU.EX2 R4, R4 ;                      /* 0x0 */
        /*0090*/                   HMMA.16816.F32.BF16 R4, R8, R2, R4 ;   /* 0x0 */
        /*00a0*/              @P3 BRA 0x10 ;                              /* 0x0 */
        /*00b0*/                   EXIT ;                                 /* 0x0 */
"""


def body() -> issue.Body:
    return issue.main_loop(issue.parse(LOOP)["kernel"], products=2)


def test_the_path_has_all_products_and_copies_and_no_mask():
    found = body()
    assert [each.address for each in found.instructions] == [0x10, 0x20, 0x30, 0x40, 0x50, 0x80, 0x90, 0xA0]
    assert found.counts == {"HMMA": 2, "MUFU": 1, "LDGSTS": 1, "integer": 1, "branch": 3}
    assert found.slots_per_product == 4


def test_the_model_is_that_of_the_page():
    assert body().clocks == pytest.approx(1.2 * (6.4 * 2 + max(8 - 2, 8 * 1)))


# A sweep whose second way loads nothing, and an inner loop that waits.
SWEEP = """
\tFunction : kernel
        /*0010*/                   LDG.E.128 R4, [R2.64] ;                /* 0x0 */
        /*0020*/              @P0 BRA 0x40 ;                              /* 0x0 */
        /*0030*/                   LDG.E.U16.CONSTANT R8, [R6.64] ;       /* 0x0 */
        /*0040*/                   MUFU.EX2 R4, R4 ;                      /* 0x0 */
        /*0050*/              @P1 BRA 0x40 ;                              /* 0x0 */
        /*0060*/                   STG.E.64 [R2.64], R4 ;                 /* 0x0 */
        /*0070*/              @P3 BRA 0x10 ;                              /* 0x0 */
        /*0080*/                   EXIT ;                                 /* 0x0 */
"""


def test_a_sweep_is_the_path_with_most_bytes():
    found = issue.main_sweep(issue.parse(SWEEP)["kernel"])
    assert [each.address for each in found.instructions] == [0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70]
    assert found.bytes == 32 * (16 + 2 + 8)
    assert found.slots_per_access == pytest.approx(7 * 512 / found.bytes)
    assert found.bytes_per_second == issue.BANDWIDTH
    busy = issue.Body(found.instructions + found.instructions[3:4] * 999)  # with a thousand exponentials
    assert busy.bytes_per_second == pytest.approx(4 * found.bytes / (1.2 * 8 * 1000) * 132 * 1.7e9)


def test_a_kernel_without_a_loop_is_an_error():
    with pytest.raises(ValueError, match="no loop"):
        issue.main_sweep(issue.parse(SWEEP)["kernel"][-1:])


def test_a_loop_without_as_many_products_is_an_error():
    with pytest.raises(ValueError, match="no loop of this kernel has a path with 3 HMMA"):
        issue.main_loop(issue.parse(LOOP)["kernel"], products=3)


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        ("HMMA.16816.F32", "HMMA"),
        ("LDSM.16.MT88.4", "LDSM"),
        ("LDGSTS.E.BYPASS.128", "LDGSTS"),
        ("LDG.E", "memory"),
        ("REDG.E.ADD.F32", "memory"),
        ("IMAD.MOV.U32", "integer"),
        ("SHFL.BFLY", "other"),
        ("SHF.R.U32.HI", "integer"),
        ("F2FP.BF16.F32.PACK_AB", "float"),
        ("BSSY", "branch"),
        ("BAR.SYNC.DEFER_BLOCKING", "other"),
    ],
)
def test_every_operation_has_its_class(operation, kind):
    assert issue.Instruction(0, operation, False, None).kind == kind


def test_a_table_is_read_as_it_is_printed():
    row = issue.Row("forward, D 64", body(), registers=40, spilled=0)
    read = issue.committed(issue.table([row]) + "\n\ntext | of | a page")
    assert read["forward, D 64"]["slots per HMMA"] == "4.00"
    assert read["forward, D 64"]["registers"] == "40"
    assert doctest.testmod(issue).failed == 0


def test_the_page_has_every_loop():
    loops = {each.name for each in (*issue.LOOPS, *issue.FLASH_ATTENTION)}
    assert loops == set(issue.committed(PAGE.read_text()))
    assert {each.name for each in issue.SWEEPS} == set(issue.committed(PAGE.read_text(), "sweep"))


def test_a_folder_without_flash_attention_is_one_line(refused, tmp_path):
    assert "clone FlashAttention with its submodule" in refused(
        main, "issue", "--flash-attention", str(tmp_path)
    )


@pytest.mark.slow
@pytest.mark.skipif(not issue.is_available(), reason="no nvcc, or no cuobjdump, on this machine")
def test_no_loop_issues_more_than_the_page_tells():
    ceiling = issue.committed(PAGE.read_text())
    for row in issue.ours():
        assert row.body.slots_per_product <= float(ceiling[row.name]["slots per HMMA"]) + 0.005, row.name
        assert row.registers <= int(ceiling[row.name]["registers"]), row.name
        assert row.spilled <= int(ceiling[row.name]["spilled"]), row.name
    ceiling = issue.committed(PAGE.read_text(), "sweep")
    for row in issue.sweeps():
        assert row.body.slots_per_access <= float(ceiling[row.name]["slots per 512 bytes"]) + 0.05, row.name
        assert row.registers <= int(ceiling[row.name]["registers"]), row.name
        assert row.spilled == 0, row.name
