-- What stands in a `::: column` is kept in its column; other figures and tables go across the page.
function Div(div)
  if div.classes:includes("column") then
    local blocks = pandoc.List({ pandoc.RawBlock("typst", '#[#set figure(scope: "column")') })
    blocks:extend(div.content)
    blocks:insert(pandoc.RawBlock("typst", "]"))
    return blocks
  end
end
